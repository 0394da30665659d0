"""From a model and a cluster to the plan that takes the least time within a loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from c2r.adapters.huggingface import is_parallel
from c2r.errors import InputError
from c2r.parallel import Comm
from c2r.planning import make_plan, placing, with_policy
from c2r.plans import Plan
from c2r.prediction import (
    Cluster,
    Phase,
    Saving,
    StepTime,
    Workload,
    Worth,
    find_cluster,
)
from c2r.prediction.shares import all_shares, measured_shares, with_chances
from c2r.prediction.time import baseline, measured_time, steps_by_dispatcher
from c2r.prediction.worth import paying_batches
from c2r.profiling import CollaborationProfile
from c2r.results import Measurement, SweepResult
from c2r.sweeps.resumable import Progress, SweepRequest, no_progress, sweep
from c2r.sweeps.times import with_times
from c2r.text import Text


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Optimized:
    """What was found for a model on a cluster.

    Attributes:
        plan: of least predicted time within the loss; placement alone where no policy saves more.
        chosen: its measurement on held-out text.
        declined: the fastest policy within the loss, where it saves less over placement alone than
            a prediction can tell: no quality is paid for that. None where a policy was chosen or
            none is faster.
        before: the step with experts in the order of their ids and plain top-k: the baseline.
        in_order: the same by each dispatcher, `before` among them.
        placed: the step with the experts placed, plain top-k, as measured.
        after: the step under the plan, as measured.
        batches: tokens a rank that it pays at, as `paying_batches` gives them.
        cluster: where.
        workload: what runs there.
        sweep: all that was measured.
        saving: what the plan saves of a step.
    """

    plan: Plan
    chosen: Measurement
    declined: Measurement | None
    before: StepTime
    in_order: Mapping[str, StepTime]
    placed: StepTime
    after: StepTime
    batches: tuple[int, ...]
    cluster: Cluster
    workload: Workload
    sweep: SweepResult

    @property
    def saving(self) -> Saving:
        """See the class."""
        return Saving(self.before, self.after)

    @property
    def is_worth_it(self) -> bool:
        """Whether the saving is more than predictions are off by."""
        return self.saving.worth is Worth.PAYS


def optimize(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    cluster: str,
    *,
    max_loss_increase: float = 0.003,
    policies: tuple[str, ...] = ("priced",),
    tokens_per_rank: int = 4096,
    phase: str = "prefill",
    num_tokens: int = 65536,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda _: None,
    comm: Comm | None = None,
    replaces: bool = False,
) -> Optimized:
    """The plan for `model` that takes the least predicted time on `cluster` within a loss.

    The first half of each text is profiled and the experts are placed by it for the least time. The
    second half measures what each policy costs and sends on that placement; the times are predicted
    from what was measured there. A policy is taken where it costs no more than allowed, and saves
    more than a prediction can tell over plain top-k on the placement, which costs nothing.

    Args:
        model: a causal language model; left as it was.
        tokenizer: the model's.
        texts: as `c2r.text.read_texts` gives them.
        cluster: a preset by name, or a YAML file.
        max_loss_increase: relative, 0.003 for 0.3 %.
        policies: to try, as `SweepRequest` takes them.
        tokens_per_rank: tokens of each rank in a step.
        phase: training, prefill or decode.
        num_tokens: to calibrate on, and to measure.
        seed: draws the parts of the text and the placement.
        out: the sweep's JSON file, from which an interrupted search resumes; None keeps nothing.
        progress: as `sweep` takes it.
        note: takes a line for the user's eyes.
        comm: as `sweep` takes it.
        replaces: as `sweep` takes it.

    Raises:
        InputError: the cluster cannot be read, the phase is unknown, or as `sweep`.
        ModelError, PlanError, RoutingError: as `sweep`.
    """
    where = find_cluster(cluster)
    if phase not in list(Phase):
        raise InputError(f"the phase {phase} is unknown; choose {', '.join(Phase)}")
    if is_parallel(model):
        raise InputError("the model's experts are spread over ranks; give it in one process")
    request = SweepRequest(
        num_ranks=where.num_ranks,
        num_nodes=where.num_nodes,
        policies=policies,
        num_tokens=num_tokens,
        seed=seed,
        cluster=cluster,
        tokens_per_rank=tokens_per_rank,
        phase=phase,
    )
    calibration: list[CollaborationProfile] = []
    result = sweep(
        model,
        tokenizer,
        texts,
        request,
        out=out,
        progress=progress,
        note=note,
        on_profile=calibration.append,
        comm=comm,
        replaces=replaces,
    )
    profile = calibration[0]
    workload = Workload.of(profile, tokens_per_rank, Phase(phase))
    return choose(result, profile, where, workload, max_loss_increase)


def choose(
    result: SweepResult,
    profile: CollaborationProfile,
    cluster: Cluster,
    workload: Workload,
    max_loss_increase: float,
) -> Optimized:
    """The measured plan of least time that is worth its loss; arguments as `optimize`."""
    where = cluster, workload
    plan = make_plan(profile, policy="top_k", **placing(result.request, profile))
    in_order, planned = (all_shares(profile, each, cluster.topology) for each in (None, plan))
    shares = {
        id(found): with_chances(measured_shares(found), planned)
        for found in (result.baseline, *result.points)
    }
    times = {key: measured_time(each, *where) for key, each in shares.items()}
    placed = times[id(result.baseline)]
    allowed = [found for found in result.points if found.loss_increase <= max_loss_increase]
    fastest = min((result.baseline, *allowed), key=lambda found: times[id(found)].total)
    is_worth_its_loss = Saving(placed, times[id(fastest)]).worth is Worth.PAYS
    chosen = fastest if is_worth_its_loss else result.baseline
    if chosen is not result.baseline:
        plan = with_policy(plan, profile, chosen.policy, chosen.strength)
    expected = {**chosen.to_json(), "time": times[id(chosen)].to_json()}
    steps = steps_by_dispatcher(in_order, *where)
    return Optimized(
        plan=replace(plan, provenance={**plan.provenance, "expected": expected}),
        chosen=chosen,
        declined=None if fastest is chosen else with_times(fastest, cluster, workload),
        before=baseline(steps),
        in_order=steps,
        placed=placed,
        after=times[id(chosen)],
        batches=paying_batches(in_order, shares[id(chosen)], *where),
        cluster=cluster,
        workload=workload,
        sweep=result,
    )
