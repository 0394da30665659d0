"""`c2r plan`: from a profile and a cluster to a routing policy and a placement."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.clusters import (
    ClusterOption,
    NodesOption,
    PhaseOption,
    RanksOption,
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

if TYPE_CHECKING:
    from c2r.plans import Plan
    from c2r.prediction import Cluster, Saving, StepTime, Workload
    from c2r.profiling import CollaborationProfile
    from c2r.reporting.next_steps import PlanFiles

_POLICIES = tuple(STRENGTH_NAMES)


def plan(
    profile: Annotated[
        list[Path],
        typer.Argument(help="Profile from `c2r profile` or `c2r import`; several are pooled."),
    ],
    ranks: RanksOption = None,
    nodes: NodesOption = None,
    cluster: ClusterOption = None,
    tokens_per_rank: TokensOption = None,
    phase: PhaseOption = "prefill",
    top_t: Annotated[
        str | None,
        typer.Option(
            help="The policy c2r with lists of so many partners, as --policy c2r=N.",
            show_default="with --policy c2r half of the experts",
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
            help="The policy's strength, apart from its name: c2r's partners T, priced's price and "
            "so on; one number, or one per layer."
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
            show_default="time; sets where --inter-node-cost is given",
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
            help="Only with --objective sets: copies to another node count as so many, for the "
            "network between nodes is slower than within.",
            show_default="8",
        ),
    ] = None,
    keep_groups: Annotated[
        bool,
        typer.Option(
            "--keep-groups",
            help="Keep neighbouring experts together in the groups by which routers of DeepSeek-V3 "
            "and its like choose. Such a model's checkpoint can be permuted only then.",
        ),
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(
            help="Further experts that each rank holds a replica of, in every layer; auto for as "
            "many as save time and fit the memory."
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
    from c2r.prediction import TrafficReport, predict_traffic

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
            progress_bar("planning, layers", loaded.num_layers) as progress,
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
                on_layer=lambda _: progress(),
                on_replicas=lambda number: progress.restart(
                    loaded.num_layers, f"with {number} replicas a rank, layers"
                ),
                on_traffic=reports.append,
            )
    report = reports[0] if reports else predict_traffic(loaded, made)
    judged = _Judged.of(loaded, made, where, workload)
    if json:
        document = _document(made, report.to_json(), out)
        print_json({**document, "time": {**describe(where, workload), **judged.to_json()}})
    _tell(made, report.mean, workload)
    files = _files(made, out, profile[0], _where(cluster, where, workload))
    _judge(files, judged, loaded)
    if out is not None:
        made.save(out)
        note(f"wrote {out}")


def _files(made: "Plan", out: Path | None, profile: Path, where: str) -> "PlanFiles":
    """The plan as the next command may name it."""
    from c2r.reporting.next_steps import PlanFiles, model_in

    return PlanFiles(
        plan=made,
        file=str(out or "plan.safetensors"),
        profile=str(profile),
        where=where,
        model=model_in(made.provenance),
    )


def _where(name: str | None, cluster: "Cluster", workload: "Workload") -> str:
    """Cluster and workload as options."""
    from c2r.reporting.next_steps import cluster_options, workload_options

    named = f"--cluster {shlex.quote(name)}" if name else cluster_options(cluster)
    return named + workload_options(workload)


def _tell(made: "Plan", mean: Any, workload: "Workload") -> None:
    """What the plan is and does."""
    first = made.layers[0]
    same = len({layer.strength for layer in made.layers}) == 1
    strength = f" {first.strength:g}" if same and first.policy != "top_k" else ""
    loads = mean.rank_load_max_over_mean_in_order, mean.rank_load_max_over_mean
    note(
        f"{made.num_layers} layers on {made.topology.num_ranks} ranks, {first.policy}{strength}: "
        f"{mean.copies_placed:.3f} copies per token (in order {mean.copies_in_order:.3f}, sent "
        f"once per expert {mean.copies_once_per_expert:.3f}); load of the busiest rank "
        f"{loads[1]:.2f} times the mean (in order {loads[0]:.2f})"
    )
    if made.provenance.get("load_margin"):
        note(
            f"the bound on load was kept with a margin of {made.provenance['load_margin']:.3f} "
            "where it could be, for the sampling error of the profile"
        )
    if made.num_replicas:
        _tell_memory(made, workload)
    if loads[1] > loads[0] + 0.05:
        complain(f"WARNING: the busiest rank's load rises from {loads[0]:.2f} to {loads[1]:.2f}")


def _tell_memory(made: "Plan", workload: "Workload") -> None:
    """What the replicas take."""
    from c2r.prediction.memory import weight_gigabytes
    from c2r.prediction.workload import UNKNOWN_SIZES

    own = [-(-layer.num_experts // made.topology.num_ranks) for layer in made.layers]
    held = [size + made.num_replicas for size in own]
    plain, more = (weight_gigabytes(workload, counts) for counts in (own, held))
    number = made.num_replicas
    said = f"{number} replica{'s' if number > 1 else ''} a rank in each layer"
    if workload.sizes != UNKNOWN_SIZES:
        said += f": {more:.3g} GB of weights on a rank, {plain:.3g} without them"
    note(said)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """A step without the plan and under it, by plain top-k's routing that was profiled."""

    cluster: "Cluster"
    workload: "Workload"
    saving: "Saving"
    others: "tuple[StepTime, ...]"
    batches: tuple[int, ...]

    @classmethod
    def of(
        cls,
        profile: "CollaborationProfile",
        made: "Plan",
        cluster: "Cluster",
        workload: "Workload",
    ) -> "_Judged":
        from c2r.prediction import Saving
        from c2r.prediction.shares import all_shares
        from c2r.prediction.time import measured_time, steps_by_dispatcher
        from c2r.prediction.worth import paying_batches

        before, after = (all_shares(profile, tried, cluster.topology) for tried in (None, made))
        return cls(
            cluster=cluster,
            workload=workload,
            saving=Saving(*(measured_time(each, cluster, workload) for each in (before, after))),
            others=tuple(steps_by_dispatcher(before, cluster, workload).values()),
            batches=paying_batches(before, after, cluster, workload),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "in_order": self.saving.before.to_json(),
            "planned": self.saving.after.to_json(),
            "saving": self.saving.to_json(),
        }


def _judge(files: "PlanFiles", judged: _Judged, profile: "CollaborationProfile") -> None:
    """Whether the plan pays where it was made for, why not, and what to do next."""
    from c2r.prediction import Worth
    from c2r.prediction.rows import dispatch_words
    from c2r.prediction.time import milliseconds
    from c2r.prediction.worth import (
        WORTH_RULE,
        fewness,
        hindrance,
        pays_at,
        smallness,
        switching,
    )

    made, saving = files.plan, judged.saving
    before, after, topology = saving.before, saving.after, made.topology
    note(
        f"predicted on {judged.cluster.name}, a token sent "
        f"{dispatch_words(before.dispatcher, after.dispatcher)}: {milliseconds(after.layer)} ms a "
        f"layer (in order {milliseconds(before.layer)}), {milliseconds(after.total)} ms a step (in "
        f"order {milliseconds(before.total)})"
    )
    headline = saving.headline
    if saving.worth is Worth.PAYS:
        headline += ", on the text that it was planned on"
    if made.is_constrained:
        headline = f"By its placement alone, under plain top-k: {headline}"
    said = f"{headline}. {saving.origin} It pays {pays_at(judged.batches)}. {WORTH_RULE}"
    if saving.worth is Worth.SLOWER:
        complain(f"WARNING: {said} Do not use the plan here")
    else:
        note(said)
    hindered = ""
    if not made.num_replicas:
        experts = made.layers[0].num_experts / topology.num_ranks
        hindered = hindrance(experts, topology, after.part("load"))
    for remark in (
        switching(judged.others, saving),
        hindered,
        fewness(profile.num_tokens, profile.top_k, profile.num_experts),
        smallness(before, judged.workload),
    ):
        if remark:
            complain(f"NOTE: {remark}")
    if topology.num_ranks == 1:
        return
    is_measured = made.provenance.get("expected") is not None
    step = files.next_step(
        Worth.PAYS if is_measured else saving.worth,
        is_measured=is_measured,
        is_own_text=not is_measured,
        lacks_replicas=bool(hindered),
    )
    note(f"next: {step.todo}: {step.command}")


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

    measured = SweepResult.load(sweep)
    made = plan_from_sweep(measured, profile, topology, Target(**target))
    expected = made.provenance["expected"]
    note(
        f"picked {expected['policy']} {expected['strength']}: "
        f"{100 * expected['loss_increase']:+.2f} % loss, {expected['copies']:.3f} copies per "
        "token were measured"
    )
    _compare_with_placement(measured.baseline.step_time, expected.get("step_time"))
    return made


def _compare_with_placement(placed: float | None, picked: float | None) -> None:
    """Notes a policy that saves less over placement alone than a prediction can tell."""
    from c2r.prediction.worth import PREDICTION_ERROR

    if not placed or not picked or picked == placed or 1 - picked / placed >= PREDICTION_ERROR:
        return
    complain(
        f"NOTE: a step is predicted to take {picked:.3g} ms, and {placed:.3g} with placement "
        f"alone, which costs no loss: less than {100 * PREDICTION_ERROR:.0f} % is no difference "
        "that a prediction can tell"
    )


def _load(paths: list[Path], worst: bool, seed: int) -> tuple[Any, list[Any]]:
    """The profile of all texts, and those of which the worst counts."""
    from c2r.profiling import CollaborationProfile, merge_all, merge_files

    if worst and len(paths) < 2:
        raise InputError("--worst places for the worst of several profiles; give more than one")
    if len(paths) == 1:
        return CollaborationProfile.load(paths[0]), []
    if worst:  # all are held anyway
        with progress_bar("reading, profiles", len(paths)) as advance:
            texts = []
            for path in paths:
                texts.append(CollaborationProfile.load(path))
                advance()
        return merge_all(texts, seed), texts
    with progress_bar("merging, layers of profiles", None) as advance:
        return merge_files(paths, seed, lambda total: advance(1, total)), []


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
        "plan_fingerprint": made.fingerprint,
        "layers": layers,
        "mean": mean,
        "expected": made.provenance.get("expected"),
    }
