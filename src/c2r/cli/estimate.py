"""`c2r estimate`: how long an MoE layer and a step would take on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.clusters import (
    ENGINES_SEND,
    PARTS,
    ClusterOption,
    NodesOption,
    PhaseOption,
    RanksOption,
    TokensOption,
    baseline_is,
    cluster_for,
    cluster_of,
    describe,
    tokens_for,
    workload_with,
)
from c2r.cli.console import (
    JsonOption,
    complain,
    note,
    print_json,
    print_table,
    print_text,
    progress_bar,
)
from c2r.cli.needs import show_needs
from c2r.cli.runs import check_output
from c2r.cli.scaling import draw_scale, show_scale
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import Plan
    from c2r.prediction import Cluster, ModelSizes, StepTime, Workload
    from c2r.profiling import CollaborationProfile

_SCALE_LAYERS = 2


def estimate(
    profile: Annotated[
        Path | None, typer.Argument(help="Profile of the routing that will run.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Plan to compare with experts in order.")
    ] = None,
    cluster: ClusterOption = None,
    ranks: RanksOption = None,
    nodes: NodesOption = None,
    tokens_per_rank: TokensOption = None,
    phase: PhaseOption = "prefill",
    model: Annotated[
        str | None,
        typer.Option(help="Model whose sizes are taken, where the profile does not tell them."),
    ] = None,
    scale: Annotated[
        bool, typer.Option("--scale", help="Show 8 to 2,048 ranks of the cluster's kind.")
    ] = False,
    experts: Annotated[
        int | None, typer.Option(help="With --scale, without a profile: draw this many experts.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Experts of a drawn token.")] = 8,
    skew: Annotated[
        float, typer.Option(help="How unlike drawn experts are: weights exp(skew * normal).")
    ] = 0.5,
    replicas: Annotated[
        int, typer.Option(min=0, help="With --scale: replicas on each rank; slow.")
    ] = 0,
    constrained: Annotated[
        Path | None,
        typer.Option(help="With --scale and --plan: profile of the model under the plan's policy."),
    ] = None,
    commands: Annotated[
        bool,
        typer.Option(
            "--commands",
            help="With --model: what profile, sweep, evaluate and finetune take of each rank.",
        ),
    ] = False,
    max_ranks: Annotated[int, typer.Option(min=8, help="The most ranks of --scale.")] = 2048,
    figure: Annotated[Path | None, typer.Option(help="PNG or SVG of --scale.")] = None,
    json: JsonOption = False,
) -> None:
    """Predict the time of a layer and a step, as is and planned.

    Every part is that of the busiest rank or link. The figures of clusters are from data sheets
    unless `c2r bench cluster` measured them. The routing is the profile's: to predict a policy,
    profile the model under it. With --scale, what exchange takes on 8 to 2,048 ranks, and what
    dispatch, placement, replicas and a policy save there. With --commands, memory and time of c2r's
    own commands, derived from the model's config.json alone.
    """
    from c2r.plans import Plan
    from c2r.profiling import CollaborationProfile

    if commands:
        tokens = tokens_for(tokens_per_rank, phase)
        show_needs(model, cluster_of(cluster, ranks, nodes), tokens, json)
        return
    check_output(figure, profile, plan, constrained, cluster)
    planned = None if plan is None else Plan.load(plan)
    kind = _cluster(cluster, ranks, nodes, planned, scale)
    if profile is not None:
        counted = CollaborationProfile.load(profile)
    else:
        counted = _drawn(experts, top_k, skew, scale)
    workload = workload_with(_sizes(counted, model, profile is not None), tokens_per_rank, phase)
    if not scale:
        _compare(counted, planned, kind, workload, json)
        return
    under = None
    if constrained is not None and planned is not None:
        under = (planned, CollaborationProfile.load(constrained))
    _scale(counted, kind, workload, _Scale(replicas, max_ranks, under, figure, json))


def _cluster(
    name: str | None, ranks: int | None, nodes: int | None, plan: "Plan | None", scale: bool
) -> "Cluster":
    """The cluster named; else the plan's, or one of as many ranks as asked, or one node."""
    if scale:
        return cluster_of(name, None if name else (ranks or 8), nodes)
    if name is None and plan is not None:
        planned = cluster_for(None, plan)
        if planned.num_ranks == (ranks or planned.num_ranks):
            return planned.of_size(planned.num_ranks, nodes or planned.num_nodes)
    return cluster_of(name, ranks, nodes)


@dataclass(frozen=True, slots=True)
class _Scale:
    """What --scale is asked for."""

    replicas: int
    max_ranks: int
    constrained: "tuple[Plan, CollaborationProfile] | None"
    figure: Path | None
    json: bool


def _drawn(experts: int | None, top_k: int, skew: float, scale: bool) -> "CollaborationProfile":
    from c2r.profiling import draw_profile

    if experts is None or not scale:
        raise InputError(
            "which routing? Give a profile, or --scale with --experts 256 --top-k 8 --skew 0.5"
        )
    note(f"routing is drawn: {experts} experts, k = {top_k}, skew {skew:g}, none belong together")
    return draw_profile(experts, top_k, skew, num_layers=_SCALE_LAYERS)


def _sizes(profile: "CollaborationProfile", model: str | None, is_profiled: bool) -> "ModelSizes":
    """Of the model named, else of the profile's. Raises `InputError` where a profile tells none."""
    from c2r.prediction import Workload
    from c2r.prediction.workload import UNKNOWN_SIZES

    if model is not None:
        from c2r.adapters.huggingface.sizes import read_sizes
        from c2r.cli.models import resolve_model

        return read_sizes(resolve_model(model))
    found = Workload.of(profile).sizes
    if found == UNKNOWN_SIZES and is_profiled:
        raise InputError(
            "the profile does not tell the sizes of its model (hidden_size, expert_size, layers), "
            "for it was imported; give the model whose config has them (--model)"
        )
    if found == UNKNOWN_SIZES:
        note("sizes of layers are those of Qwen3-30B-A3B; --model takes others")
    return found


def _scale(
    profile: "CollaborationProfile", cluster: "Cluster", workload: "Workload", asked: _Scale
) -> None:
    from c2r.planning.scaling import SIZES, estimate_scale
    from c2r.reporting import check_matplotlib

    if asked.figure is not None:
        check_matplotlib()
    sizes = [size for size in SIZES if size <= asked.max_ranks]
    points = []
    with progress_bar("estimating, numbers of ranks", len(sizes)) as advance:
        for point in estimate_scale(
            profile,
            cluster,
            workload,
            sizes=sizes,
            num_layers=_SCALE_LAYERS,
            replicas=asked.replicas,
            constrained=asked.constrained,
        ):
            points.append(point)
            advance()
    title = (
        f"A step, predicted: {workload.tokens_per_rank:,} tokens a rank, {workload.phase}, nodes "
        f"of {cluster.topology.ranks_per_node} as in {cluster.name}"
    )
    if asked.figure is not None:
        draw_scale(points, f"Exchange on ranks as in {cluster.name}", asked.figure)
    if asked.json:
        document = describe(cluster, workload)
        print_json({**document, "points": [point.to_json() for point in points]})
    else:
        show_scale(points, title)


def _compare(
    profile: "CollaborationProfile",
    plan: "Plan | None",
    cluster: "Cluster",
    workload: "Workload",
    json: bool,
) -> None:
    """Every dispatcher, with experts in order and as planned."""
    from c2r.prediction.shares import all_shares
    from c2r.prediction.time import baseline
    from c2r.prediction.worth import fewness, is_of_own_text, paying_batches, smallness

    _check_memory(profile, plan, cluster, workload)
    where = cluster, workload
    before = _times(profile, None, *where)
    after: dict[str, StepTime] = {}
    batches: tuple[int, ...] = ()
    if plan is not None:
        after = _times(profile, plan, *where)
        in_order, placed = (all_shares(profile, each, cluster.topology) for each in (None, plan))
        batches = paying_batches(in_order, placed, *where)
    if json:
        print_json(
            {
                **describe(cluster, workload),
                "in_order": {name: step.to_json() for name, step in before.items()},
                "planned": {name: step.to_json() for name, step in after.items()},
                "break_even_tokens_per_rank": next(iter(batches), None),
            }
        )
        return
    tokens = f"{workload.tokens_per_rank:,} tokens a rank"
    _show(before, after, f"{tokens}, {workload.phase}, on {cluster.place}")
    print_text(f"{cluster.name}: {cluster.source}")
    for remark in (
        fewness(profile.num_tokens, profile.top_k, profile.num_experts),
        smallness(baseline(before), workload),
    ):
        if remark:
            print_text(remark)
    if plan is not None:
        _conclude(before, after, batches, is_of_own_text(profile, plan))


def _check_memory(
    profile: "CollaborationProfile",
    plan: "Plan | None",
    cluster: "Cluster",
    workload: "Workload",
) -> None:
    """Notes weights that do not fit; raises `InputError` where it is the plan's replicas."""
    from c2r.prediction.memory import room, weight_gigabytes, weights_fit

    replicas = 0 if plan is None else plan.num_replicas
    own = -(-profile.num_experts // cluster.num_ranks)
    plain, held = (
        weight_gigabytes(workload, [count] * workload.sizes.num_moe_layers)
        for count in (own, own + replicas)
    )
    if replicas and not weights_fit(held, cluster):
        raise InputError(
            f"{replicas} replicas a rank do not fit: weights take {held:.3g} GB, {plain:.3g} "
            f"without replicas, and may fill {room(cluster)}; plan with fewer (--replicas), or for "
            "more ranks"
        )
    if not weights_fit(plain, cluster):
        note(
            f"the weights do not fit: {plain:.3g} GB a rank, and they may fill {room(cluster)}; "
            "take more ranks"
        )


def _times(
    profile: "CollaborationProfile",
    plan: "Plan | None",
    cluster: "Cluster",
    workload: "Workload",
) -> "dict[str, StepTime]":
    """The step by dispatcher, as far as the cluster has several ranks, and nodes of several."""
    from c2r.prediction import DISPATCHERS, predict_time

    return {
        name: predict_time(profile, plan, cluster, workload, dispatcher=name)
        for name in DISPATCHERS
        if cluster.is_nested or name != "hierarchical"
    }


def _show(before: "dict[str, StepTime]", after: "dict[str, StepTime]", title: str) -> None:
    from c2r.prediction.rows import DISPATCH_WORDS
    from c2r.prediction.time import baseline

    base = baseline(before)
    rows = [
        [
            DISPATCH_WORDS[name],
            placed,
            step.part("reorder"),
            step.part("exchange"),
            step.part("compute"),
            step.layer,
            step.total,
            f"{step.total / base.total:.2f}",
            f"{100 * step.exchange_share:.0f} %",
        ]
        for placed, steps in (("in order", before), ("placed", after))
        for name, step in steps.items()
    ]
    columns = ["a token is sent", "experts", "reorder", "exchange", "compute", "layer", "step"]
    columns += ["step of baseline", "exchange of step"]
    print_table(f"Milliseconds, predicted: {title}", columns, rows)
    print_text(f"{baseline_is(base)} {PARTS}")
    print_text(ENGINES_SEND)


def _conclude(
    before: "dict[str, StepTime]",
    after: "dict[str, StepTime]",
    batches: Sequence[int],
    is_own_text: bool,
) -> None:
    from c2r.prediction import Saving, Worth
    from c2r.prediction.rows import dispatch_words
    from c2r.prediction.time import baseline, milliseconds
    from c2r.prediction.worth import WORTH_RULE, pays_at, switching

    saving = Saving(baseline(before), baseline(after))
    plain, planned = saving.before, saving.after
    own = ", on the text that it was planned on" if is_own_text else ""
    said = (
        f"{saving.headline}{own} ({milliseconds(plain.total)} to {milliseconds(planned.total)} ms, "
        f"a token sent {dispatch_words(plain.dispatcher, planned.dispatcher)}). {saving.origin} It "
        f"pays {pays_at(batches)}. {WORTH_RULE} {switching(before.values(), saving)}"
    )
    if saving.worth is Worth.SLOWER:
        complain(f"WARNING: {said} Do not use the plan here, or plan for this cluster.")
    else:
        print_text(said)
