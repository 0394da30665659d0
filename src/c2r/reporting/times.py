"""The times that a report speaks of: where they are predicted, of what, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from c2r.errors import InputError, PlanMismatchError
from c2r.plans import Plan, load_max_over_mean
from c2r.prediction import PRESETS, Cluster, ModelSizes, Phase, Saving, StepTime, Workload
from c2r.prediction.cluster import DEFAULT, cluster_within, planned_cluster
from c2r.prediction.shares import RankShares, all_shares, measured_shares, with_chances
from c2r.prediction.time import measured_time
from c2r.prediction.workload import UNKNOWN_SIZES
from c2r.profiling import CollaborationProfile
from c2r.reporting.inputs import Inputs
from c2r.results import Measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where a report predicts times, and of how many tokens.

    Attributes:
        cluster: of as many ranks and nodes as the plan or the sweep.
        workload: what runs there.
        note: what was taken because no file says it; empty where all is known.
    """

    cluster: Cluster
    workload: Workload
    note: str = ""

    @property
    def place(self) -> str:
        """The cluster and its size."""
        return self.cluster.place

    @property
    def name(self) -> str:
        """Tokens, phase and cluster, in a few words."""
        work = self.workload
        return f"{work.tokens_per_rank:,} tokens a rank, {work.phase}, on {self.cluster.name}"

    def time_of(self, found: Measurement) -> StepTime | None:
        """The step as measured under a plan; None where shares of ranks were not measured."""
        shares = measured_shares(found)
        return measured_time(shares, self.cluster, self.workload) if shares else None


def find_setting(
    inputs: Inputs,
    cluster: Cluster | None = None,
    tokens_per_rank: int | None = None,
    phase: Phase | None = None,
) -> Setting | None:
    """Where and for what to predict times: as told, else as the files say, else as `c2r plan` does.

    Args:
        inputs: the files. A plan and a sweep describe their cluster. One that a file only names
            counts where it is a preset: no other file is opened because a file names it.
        cluster: where; overrides what the files say.
        tokens_per_rank: of a step.
        phase: what is done with the tokens.

    Returns:
        None where no file tells the ranks.

    Raises:
        PlanMismatchError: the files are for other ranks or nodes than `cluster`.
        InputError: the sizes of the model or the cluster in a file are damaged, or as `Workload`.
    """
    topology = inputs.topology
    if topology is None:
        return None
    asked = _asked(inputs)
    phase = phase or _phase(asked)
    notes = []
    if cluster is None and inputs.plan is not None:
        cluster = planned_cluster(inputs.plan)
    if cluster is None and inputs.sweep is not None:
        cluster = cluster_within(inputs.sweep.request, topology, "sweep")
    if cluster is None:
        named = _named_cluster(inputs)
        preset = PRESETS.get(named or DEFAULT)
        if preset is None:
            notes.append(f"The figures of {named} are not known here: give them with --cluster.")
        cluster = (preset or PRESETS[DEFAULT]).of_size(topology.num_ranks, topology.num_nodes)
    if cluster.topology != topology:
        raise PlanMismatchError(
            f"the files are for {topology.num_ranks} ranks on {topology.num_nodes} nodes, the "
            f"cluster {cluster.name} has {cluster.num_ranks} on {cluster.num_nodes}; name another "
            "cluster, or give files that were made for it"
        )
    sizes = _known_sizes(inputs)
    if sizes is None:
        notes.append("No file tells the model's sizes: those of Qwen3-30B-A3B are taken.")
    workload = Workload(
        sizes=sizes or UNKNOWN_SIZES,
        tokens_per_rank=tokens_per_rank or _tokens(asked, phase),
        phase=phase,
    )
    return Setting(cluster=cluster, workload=workload, note=" ".join(notes))


def _named_cluster(inputs: Inputs) -> str | None:
    plan, sweep = inputs.plan, inputs.sweep
    known = (plan and plan.provenance.get("cluster"), sweep and sweep.request.get("cluster"))
    return next((name for name in known if isinstance(name, str)), None)


def _known_sizes(inputs: Inputs) -> ModelSizes | None:
    profiled = None if inputs.profile is None else inputs.profile.provenance.get("request")
    for request in (profiled, None if inputs.sweep is None else inputs.sweep.request):
        sizes = request.get("sizes") if isinstance(request, Mapping) else None
        if isinstance(sizes, Mapping):
            return ModelSizes.from_json(sizes)
    return None


def _asked(inputs: Inputs) -> Mapping[str, Any]:
    """What the sweep or the plan was made for."""
    made_for = None if inputs.plan is None else inputs.plan.provenance.get("workload")
    if inputs.sweep is not None:
        return inputs.sweep.request
    return made_for if isinstance(made_for, Mapping) else {}


def _tokens(asked: Mapping[str, Any], phase: Phase) -> int:
    is_same = asked.get("phase", phase) == phase
    tokens = asked.get("tokens_per_rank") if is_same else None
    if tokens is None:
        return phase.usual_tokens
    if type(tokens) is not int:
        raise InputError(f"a file's tokens_per_rank is {tokens!r}; give --tokens-per-rank")
    return tokens


def _phase(asked: Mapping[str, Any]) -> Phase:
    phase = asked.get("phase", "prefill")
    if phase not in list(Phase):
        raise InputError(f"a file's phase is {phase!r}; give --phase")
    return Phase(phase)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Side:
    """The routing of all layers, and what a step of it takes.

    Attributes:
        shares: what comes to each rank, by layer.
        time: of a step, by the dispatcher that is fastest.
    """

    shares: tuple[RankShares, ...]
    time: StepTime


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Times:
    """A step before and after.

    Attributes:
        setting: where.
        before: experts in the order of their ids, plain top-k.
        after: under the plan.
        is_measured: whether `after` is of the routing that was measured under the plan; else it is
            of plain top-k on the plan's placement.
        placed: the step of plain top-k on the plan's placement, where `after` was measured.
    """

    setting: Setting
    before: Side
    after: Side
    is_measured: bool
    placed: StepTime | None = None

    @property
    def saving(self) -> Saving:
        """What the plan saves of a step."""
        return Saving(self.before.time, self.after.time)


def find_times(
    profile: CollaborationProfile,
    plan: Plan | None,
    measured: Measurement | None,
    setting: Setting,
) -> Times | None:
    """The step before, of the profile, and after: as measured if it was, else as predicted.

    Returns:
        None where there is neither a plan nor a measurement of ranks.

    Raises:
        InputError: as `predict_traffic`, or the measurement is of other layers, ranks or nodes.
    """
    topology = setting.cluster.topology
    before = all_shares(profile, None, topology)
    placed = None if plan is None else all_shares(profile, plan, topology)
    after = () if measured is None else measured_shares(measured)
    is_measured = bool(after)
    if is_measured:
        _check_shape(after, before)
        before, after = _with_equal_weights(before, after, placed)
    elif placed is not None:
        after = placed
    else:
        return None
    return Times(
        setting=setting,
        before=_side(before, setting),
        after=_side(after, setting),
        is_measured=is_measured,
        placed=_side(placed, setting).time if is_measured and placed else None,
    )


def _check_shape(measured: Sequence[RankShares], predicted: Sequence[RankShares]) -> None:
    ours, theirs = (
        [(len(layer.rows), len(layer.visits), len(layer.node_visits)) for layer in layers]
        for layers in (measured, predicted)
    )
    if ours != theirs:
        raise InputError(
            f"{len(ours)} layers on {ours[0][0]} ranks of {ours[0][2]} nodes were measured, the "
            f"profile and the plan have {len(theirs)} on {theirs[0][0]} of {theirs[0][2]}; give "
            "files of one model and plan"
        )


def _with_equal_weights(
    before: Sequence[RankShares],
    after: Sequence[RankShares],
    placed: Sequence[RankShares] | None,
) -> tuple[tuple[RankShares, ...], tuple[RankShares, ...]]:
    """Both count reading experts' weights, or neither: a measurement does not tell which were used.

    With the plan known, they are taken to be those of plain top-k on its placement.
    """
    if placed is None:
        return tuple(replace(layer, expert_chances=None) for layer in before), tuple(after)
    return tuple(before), with_chances(after, placed)


def _side(shares: tuple[RankShares, ...], setting: Setting) -> Side:
    return Side(shares=shares, time=measured_time(shares, setting.cluster, setting.workload))


def mean_load(shares: Sequence[RankShares]) -> float:
    """Expert rows of the busiest rank over the mean; mean over layers."""
    return sum(load_max_over_mean(layer.rows) for layer in shares) / len(shares)
