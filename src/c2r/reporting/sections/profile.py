"""The sections of a report that show a profile and a plan, and where all its numbers come from."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from c2r.plans import Plan, contiguous_placement
from c2r.prediction import TrafficReport
from c2r.profiling import CollaborationMetrics, CollaborationProfile, LayerProfile
from c2r.reporting.charts import Answer, Chart, HeatMap, Matrix, Section, Series, Table, table_of
from c2r.reporting.inputs import Inputs
from c2r.types import Int

MAX_CELLS = 64  # rows and columns of a collaboration matrix; more experts are summed in blocks


def show_collaboration(
    profile: CollaborationProfile,
    metrics: Sequence[CollaborationMetrics],
    plan: Plan | None,
    answer: Answer,
) -> Section:
    """Effective collaborators by layer, and who is chosen with whom."""
    table = table_of([{"layer": i, **asdict(layer)} for i, layer in enumerate(metrics)])
    by_layer = Chart(
        slug="effective-collaborators",
        title="Effective collaborators by layer",
        x_label="layer",
        y_label="experts",
        series=(_by_layer("experts", [layer.effective_collaborators for layer in metrics]),),
        table=table,
    )
    matrices = tuple(
        collaboration_matrix(index, layer, None if plan is None else plan.layers[index].placement)
        for index, layer in enumerate(profile.layers)
    )
    size = -(-profile.num_experts // MAX_CELLS)
    notes = ["The stronger the colour, the more tokens chose both."]
    if plan is not None:
        notes.append("Experts are drawn rank by rank, with a line between ranks.")
    if size > 1:
        notes.append(
            f"{size} neighbouring experts are summed into one cell, to keep the page small."
        )
    together = HeatMap(
        slug="collaboration",
        title="Tokens that chose both experts",
        x_label="expert",
        y_label="expert",
        unit="tokens",
        matrices=matrices,
        note=" ".join(notes),
    )
    return Section(
        slug="collaboration",
        title="Who collaborates",
        text="Two experts collaborate when a token chooses both. Effective collaborators are "
        "exp(entropy) of an expert's partners: 1 is one fixed partner. Fewer is better for "
        f"placement, since partners can share a rank.{_on_one_rank(profile, plan)}",
        charts=(by_layer, together),
        answer=answer,
    )


def _on_one_rank(profile: CollaborationProfile, plan: Plan | None) -> str:
    """Which share of the pairs chosen together is on one rank, under the plan and in order."""
    if plan is None:
        return ""
    num_ranks, pairs = plan.topology.num_ranks, np.zeros(3)
    for layer, planned in zip(profile.layers, plan.layers, strict=True):
        in_order = contiguous_placement(layer.num_experts, num_ranks)
        for index, placement in enumerate((planned.placement, in_order)):
            pairs[index] += layer.coactivation[placement[:, None] == placement].sum()
        pairs[2] += layer.coactivation.sum()
    if not pairs[2]:
        return ""
    placed, unplaced = 100 * pairs[:2] / pairs[2]
    without = " (replicas not counted)" if plan.num_replicas else ""
    parted = ": this plan parts partners" if placed < unplaced else ""
    return (
        f" Of all pairs, {placed:.0f} % are on one rank under the plan{without}, {unplaced:.0f} % "
        f"in order{parted}."
    )


def collaboration_matrix(index: int, layer: LayerProfile, placement: Int | None) -> Matrix:
    """Co-activations of one layer, ranks' experts together, summed in blocks beyond `MAX_CELLS`."""
    order = np.arange(layer.num_experts)
    cuts: tuple[float, ...] = ()
    size = -(-layer.num_experts // MAX_CELLS)
    if placement is not None:
        order = np.argsort(placement, kind="stable")
        starts = np.cumsum(np.bincount(placement))[:-1]
        cuts = tuple(float(start) / size for start in starts)
    starts = np.arange(0, layer.num_experts, size)
    ordered = layer.coactivation[np.ix_(order, order)]
    sums = np.add.reduceat(np.add.reduceat(ordered, starts, axis=0), starts, axis=1)
    names = tuple(_name_block(order[start : start + size]) for start in starts)
    return Matrix(
        name=f"layer {index}", values=sums, row_names=names, column_names=names, cuts=cuts
    )


def show_load(
    profile: CollaborationProfile,
    metrics: Sequence[CollaborationMetrics],
    traffic: TrafficReport | None,
) -> Section:
    """How evenly the work falls on experts and ranks."""
    series = [_by_layer("experts", [layer.load_max_over_mean for layer in metrics])]
    if traffic is not None:
        layers = traffic.layers
        series += [
            _by_layer("ranks, in order", [i.rank_load_max_over_mean_in_order for i in layers]),
            _by_layer("ranks, placed", [i.rank_load_max_over_mean for i in layers]),
        ]
    most = Chart(
        slug="load-by-layer",
        title="Load of the busiest over the mean",
        x_label="layer",
        y_label="max / mean",
        series=tuple(series),
    )
    width = profile.num_experts
    loads = [_padded(layer.load, width) for layer in profile.layers]
    each = HeatMap(
        slug="expert-load",
        title="Tokens of each expert",
        x_label="expert",
        y_label="layer",
        unit="tokens",
        note="The stronger the colour, the more tokens.",
        matrices=(
            Matrix(
                name=f"layers 0 to {profile.num_layers - 1} from the top, experts 0 to "
                f"{width - 1} from the left",
                values=np.stack(loads),
                row_names=tuple(map(str, range(profile.num_layers))),
                column_names=tuple(map(str, range(width))),
            ),
        ),
    )
    return Section(
        slug="load",
        title="Who is busy",
        text="1 is an even load. The busiest rank is the one that all others wait for.",
        charts=(most, each),
    )


def show_traffic(traffic: TrafficReport, answer: Answer) -> Section:
    """Copies per token by layer and dispatch."""
    layers = traffic.layers
    copies = Chart(
        slug="copies",
        title=f"Copies per token on {traffic.topology.num_ranks} ranks",
        x_label="layer",
        y_label="copies per token",
        series=(
            _by_layer("once per expert", [layer.copies_once_per_expert for layer in layers]),
            _by_layer("once per rank, in order", [layer.copies_in_order for layer in layers]),
            _by_layer("once per rank, placed", [layer.copies_placed for layer in layers]),
        ),
        table=table_of(traffic.to_json()["layers"]),
    )
    return Section(
        slug="traffic",
        title="What is sent",
        text="Predicted from the routing that was counted: rows that one token sends in one layer, "
        "its own rank counted.",
        charts=(copies,),
        answer=answer,
    )


def show_plan(plan: Plan) -> Section:
    """Policy and placement, layer by layer."""
    rows = []
    policies = dict.fromkeys(layer.policy for layer in plan.layers)
    for index, layer in enumerate(plan.layers):
        ranks = range(plan.topology.num_ranks)
        experts = " | ".join(" ".join(map(str, layer.experts_of(rank))) for rank in ranks)
        rows.append((index, layer.policy, layer.strength, layer.top_t, experts))
    columns = ("layer", "policy", "strength", "list length T", "experts of rank 0 | 1 | ...")
    return Section(
        slug="plan",
        title="The plan",
        text=f"Policy {', '.join(policies)}; {plan.num_layers} layers on "
        f"{plan.topology.num_ranks} ranks of {plan.topology.num_nodes} node(s). Plan "
        f"fingerprint {plan.fingerprint}.",
        table=Table(columns=columns, rows=tuple(rows)),
    )


def show_provenance(inputs: Inputs) -> Section:
    """Every file, and what it says about itself."""
    rows: list[tuple[str, str, str, str]] = []
    files = [f"{source.path.name} ({source.kind})" for source in inputs.sources]
    for source in inputs.sources:
        known = dict(_flatten(source.provenance)) or {"provenance": "the file does not say"}
        rows += [(source.path.name, source.kind, name, value) for name, value in known.items()]
    return Section(
        slug="provenance",
        title="Where the numbers come from",
        text=f"Every number on this page is in {', '.join(files)}, or predicted from that by c2r.",
        table=Table(columns=("file", "kind", "field", "value"), rows=tuple(rows)),
    )


def _by_layer(name: str, values: Sequence[float]) -> Series:
    return Series(name=name, x=tuple(range(len(values))), y=tuple(values))


def _name_block(experts: Int) -> str:
    ids = [int(expert) for expert in experts]
    if len(ids) == 1:
        return str(ids[0])
    if ids == list(range(ids[0], ids[0] + len(ids))):
        return f"{ids[0]}-{ids[-1]}"
    return " ".join(map(str, ids))


def _padded(load: Int, width: int) -> npt.NDArray[np.float64]:
    values = np.full(width, np.nan)
    values[: len(load)] = load
    return values


def _flatten(values: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(values, dict):
        return [
            pair
            for key, value in values.items()
            for pair in _flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(values, list) and any(isinstance(value, dict) for value in values):
        return _flatten(dict(enumerate(values)), prefix)
    if isinstance(values, list):
        return [(prefix, ", ".join(map(str, values)))]
    return [(prefix, "" if values is None else str(values))]
