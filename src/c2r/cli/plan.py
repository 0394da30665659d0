"""`c2r plan`: from a profile and a cluster to a routing policy and a placement."""

from pathlib import Path
from typing import Annotated, Any

import typer

from c2r.cli.clusters import (
    ClusterOption,
    PhaseOption,
    TokensOption,
    cluster_of,
    describe,
    workload_of,
)
from c2r.cli.console import JsonOption, complain, note, print_json, progress_bar
from c2r.cli.flags import naming_flags
from c2r.cli.runs import check_output
from c2r.errors import InputError
from c2r.policy_names import STRENGTH_NAMES

_POLICIES = tuple(STRENGTH_NAMES)


def plan(
    profile: Annotated[
        list[Path],
        typer.Argument(help="Profile from `c2r profile` or `c2r import`; several are pooled."),
    ],
    ranks: Annotated[
        int | None, typer.Option(help="Devices that the experts are spread over.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Machines that the ranks are on.")] = 1,
    cluster: ClusterOption = None,
    tokens_per_rank: TokensOption = 4096,
    phase: PhaseOption = "prefill",
    top_t: Annotated[
        str | None,
        typer.Option(
            help="Partners per expert: one number, or one per layer: 8,8,6,4.",
            show_default="half of the experts",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Routing policy, and its strength, as priced=0.1 or, one per layer, "
            "c2r=8,8,6,4: " + ", ".join(_POLICIES) + ".",
            show_default="top_k, placement alone; with --top-t c2r",
        ),
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(
            help="The policy's T, m, eps or price, apart from its name: one number, or one per "
            "layer."
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(help="Curve from `c2r sweep` to pick the policy and strength from."),
    ] = None,
    max_loss_increase: Annotated[
        float | None,
        typer.Option(help="With --sweep: least time within this loss, 0.003 for +0.3 %."),
    ] = None,
    copies: Annotated[
        float | None, typer.Option(help="With --sweep: least loss within these copies per token.")
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(help="With --sweep: least loss within so many milliseconds a layer."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same plan.")] = 0,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Place for the least predicted `time`, for the fewest copies (`sets`), or by "
            "`pairs` where routing sets are unknown.",
            show_default="time; with --inter-node-cost sets",
        ),
    ] = None,
    max_load: Annotated[
        float | None,
        typer.Option(
            help="Bound on the busiest rank's load over the mean, such as 1.1; with --sweep on "
            "the load that was measured."
        ),
    ] = None,
    inter_node_cost: Annotated[
        float | None,
        typer.Option(
            help="Place for copies, one to another node counting as so many: how many times slower "
            "the network between nodes is than within.",
            show_default="with --objective sets: 8",
        ),
    ] = None,
    keep_groups: Annotated[
        bool,
        typer.Option(
            "--keep-groups",
            help="Keep the groups of experts of a group-limited router (DeepSeek-V3) whole, as "
            "`c2r permute` must; the profile tells them.",
        ),
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(
            help="Further experts that each rank holds a replica of; auto for as many as save time "
            "and fit the memory."
        ),
    ] = "0",
    worst: Annotated[
        bool,
        typer.Option(
            "--worst",
            help="Of several profiles, place for the one that takes longest, not for all.",
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Layers planned at a time.", show_default="as many as pay"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Plan to write.")] = None,
    json: JsonOption = False,
) -> None:
    """Place the experts for the least time, and choose the routing.

    Every rank gets the same number of experts (differing by one at most) and, with --replicas,
    replicas of further ones: a token takes the replica on a rank that it visits anyway. The policy
    is the one named, or with --sweep the measured one that meets a target.
    """
    from c2r.planning import make_plan
    from c2r.prediction import TrafficReport, best_time, predict_traffic

    if out is None and not json:
        raise InputError("where should the plan go? Give --out PLAN.safetensors, or --json")
    check_output(out, *profile, sweep, cluster)
    loaded, texts = _load(profile, worst, seed)
    target = {"max_loss_increase": max_loss_increase, "copies": copies, "max_time": max_time}
    further = _parse_replicas(replicas)
    reports: list[TrafficReport] = []
    where = cluster_of(cluster, ranks, nodes)
    workload = workload_of(loaded, tokens_per_rank, phase)
    _check_options(
        sweep, target, (policy, strength, top_t, further or keep_groups or None, worst or None)
    )
    if sweep is not None:
        made = _plan_by_target(loaded, sweep, where.topology, {**target, "max_load": max_load})
    else:
        name, chosen = _choose(policy, strength)
        with (
            naming_flags(objective="--objective", num_threads="--jobs"),
            progress_bar("planning, layers", loaded.num_layers) as advance,
        ):
            made = make_plan(
                loaded,
                num_ranks=where.num_ranks,
                num_nodes=where.num_nodes,
                cluster=where,
                workload=workload,
                top_t=_parse_numbers("--top-t", top_t),
                policy=name,
                strength=chosen,
                seed=seed,
                objective=objective or ("time" if inter_node_cost is None else "sets"),
                max_load=max_load,
                inter_node_cost=8.0 if inter_node_cost is None else inter_node_cost,
                replicas=further,
                num_groups=_num_groups(loaded) if keep_groups else 1,
                worst_of=texts,
                num_threads=jobs,
                on_layer=lambda _: advance(),
                on_traffic=reports.append,
            )
    if out is not None:
        made.save(out)
    report = reports[0] if reports else predict_traffic(loaded, made)
    before, after = (
        best_time(loaded, tried, where, workload, chunks=(1,)) for tried in (None, made)
    )
    if json:
        times = {"contiguous": before.to_json(), "planned": after.to_json()}
        document = _document(made, report.to_json(), out)
        print_json({**document, "time": {**describe(where, workload), **times}})
    _tell(made, report.mean, (before, after), where.name)
    if out is not None:
        note(f"wrote {out}")


def _tell(made: Any, mean: Any, steps: Any, cluster: str) -> None:
    """What the plan is and does, on a few lines; a warning where it does harm."""
    before, after = steps
    first = made.layers[0]
    same = len({layer.strength for layer in made.layers}) == 1
    strength = f" {first.strength:g}" if same and first.policy != "top_k" else ""
    loads = mean.rank_load_max_over_mean_contiguous, mean.rank_load_max_over_mean
    note(
        f"{made.num_layers} layers on {made.topology.num_ranks} ranks, {first.policy}{strength}: "
        f"{mean.copies_placed:.3f} copies per token (contiguous {mean.copies_contiguous:.3f}, "
        f"k-fold {mean.copies_k_fold:.3f}), rank load max/mean {loads[1]:.2f} (contiguous "
        f"{loads[0]:.2f})"
    )
    if made.provenance.get("load_margin"):
        note(
            f"the bound on load was kept with a margin of {made.provenance['load_margin']:.3f} "
            "where it could be, for the sampling error of the profile"
        )
    widths = [layer.replicas.size // made.topology.num_ranks for layer in made.layers]
    if any(widths):
        note(f"replicas a rank, layer by layer: {', '.join(map(str, widths))}")
    note(
        f"predicted on {cluster}: {after.layer:.3f} ms a layer (contiguous {before.layer:.3f}), "
        f"{after.total:.1f} ms a step (contiguous {before.total:.1f})"
    )
    if first.policy != "top_k":
        note(
            "copies, load and time are those of plain top-k routing on this placement; "
            "`c2r measure` shows them under the policy"
        )
    if first.policy == "top_k" and made.topology.num_ranks > 1:
        note("next: c2r sweep MODEL tells what policies cost, --policy priced=0.03 tries one")
    if loads[1] > loads[0] + 0.05:
        complain(f"WARNING: the busiest rank's load rises from {loads[0]:.2f} to {loads[1]:.2f}")
    if after.total > before.total:
        complain("WARNING: predicted to be slower than experts in order; do not use it here")


def _check_options(
    sweep: Path | None, target: dict[str, float | None], choices: tuple[object, ...]
) -> None:
    asked = [value for value in target.values() if value is not None]
    if sweep is None and asked:
        raise InputError(
            "--max-loss-increase, --max-time and --copies pick from a measured curve; run `c2r "
            "sweep MODEL --ranks R --out sweep.json` and give --sweep sweep.json"
        )
    if sweep is not None and not asked:
        raise InputError(
            "--sweep picks by a target; give --max-loss-increase, --max-time or --copies"
        )
    if sweep is not None and any(choice is not None for choice in choices):
        raise InputError(
            "--sweep picks a plan that was measured; leave out --policy, --strength, --top-t, "
            "--replicas, --keep-groups and --worst"
        )


def _num_groups(profile: Any) -> int:
    """Groups of experts of the profiled model. Raises `InputError` where it is not known."""
    provenance = profile.provenance
    known = {**provenance, **provenance.get("request", {})}.get("num_groups")
    if not isinstance(known, int):
        raise InputError(
            "--keep-groups: the profile does not say how many groups of experts its model has; "
            "profile the model with this version, or import its trace with --model"
        )
    return known


def _plan_by_target(
    profile: Any, sweep: Path, topology: Any, target: dict[str, float | None]
) -> Any:
    from c2r.planning import plan_from_sweep
    from c2r.results import SweepResult, Target

    made = plan_from_sweep(SweepResult.load(sweep), profile, topology, Target(**target))
    expected = made.provenance["expected"]
    note(
        f"picked {expected['policy']} {expected['strength']}: "
        f"{100 * expected['loss_increase']:+.2f} % loss, {expected['copies']:.3f} copies per "
        "token were measured"
    )
    return made


def _load(paths: list[Path], worst: bool, seed: int) -> tuple[Any, list[Any]]:
    """The profile of all texts, and those of which the worst counts."""
    from c2r.profiling import CollaborationProfile, merge_files

    if len(paths) == 1 and not worst:
        return CollaborationProfile.load(paths[0]), []
    if worst and len(paths) < 2:
        raise InputError("--worst places for the worst of several profiles; give more than one")
    with progress_bar("merging, layers of profiles", None) as advance:
        pooled = merge_files(paths, seed, lambda total: advance(1, total))
    return pooled, [CollaborationProfile.load(path) for path in paths] if worst else []


def _parse_replicas(text: str) -> Any:
    if text == "auto":
        return text
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise InputError(f"--replicas {text} is no number of experts; give 0, 1, 2, ... or auto")
    return number


def _choose(policy: str | None, strength: str | None) -> tuple[str | None, Any]:
    """The policy, and its strength if one is given."""
    from c2r.planning import parse_policy

    if policy is None:
        return None, _parse_numbers("--strength", strength)
    name, strengths = parse_policy(policy)
    if strengths and strength is not None:
        raise InputError(
            f"--policy {policy} and --strength {strength} both give a strength; leave one out"
        )
    if strengths:
        return name, strengths[0] if len(strengths) == 1 else strengths
    return name, _parse_numbers("--strength", strength)


def _parse_numbers(option: str, text: str | None) -> Any:
    """One number, or several with commas between."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} {text} is not a number, or numbers with commas between; try {option} 8"
        ) from None
    return values[0] if len(values) == 1 else values


def _document(made: Any, traffic: dict[str, Any], out: Path | None) -> dict[str, Any]:
    layers = [
        {
            **predicted,
            "policy": layer.policy,
            "strength": layer.strength,
            "top_t": layer.top_t,
            "placement": layer.placement.tolist(),
            "replicas": layer.replicas.tolist(),
            "copies": predicted["copies_placed"],
        }
        for layer, predicted in zip(made.layers, traffic["layers"], strict=True)
    ]
    mean = {**traffic["mean"], "copies": traffic["mean"]["copies_placed"]}
    return {
        "out": None if out is None else str(out),
        "num_ranks": made.topology.num_ranks,
        "num_nodes": made.topology.num_nodes,
        "fingerprint": made.fingerprint,
        "layers": layers,
        "mean": mean,
        "expected": made.provenance.get("expected"),
    }
