"""Whether a plan saves time: one rule for every command that judges one."""

from dataclasses import dataclass, replace
from enum import StrEnum

from c2r.plans import ClusterTopology, Plan
from c2r.prediction.cluster import Cluster
from c2r.prediction.shares import all_shares
from c2r.prediction.time import StepTime, check_ranks, measured_time
from c2r.prediction.workload import Workload
from c2r.profiling import CollaborationProfile

PREDICTION_ERROR = 0.04
"""Share of a step by which predictions were off in the median, where they were measured: see
docs/how-it-works.md. A difference that is smaller says nothing."""

WORST_PREDICTION_ERROR = 0.20
"""The same at worst."""

WORTH_RULE = (
    f"Predictions were off by {100 * PREDICTION_ERROR:.0f} % in the median and by "
    f"{100 * WORST_PREDICTION_ERROR:.0f} % at worst, on emulated hosts: a difference "
    "below the median is none that they can tell."
)

BATCHES = tuple(1 << exponent for exponent in range(17))
"""Tokens a rank that `break_even_tokens` tries."""

UNEVEN = 1.3
"""Load of the busiest rank over the mean from which it is worth saying what would even it out."""

_SMALL = 512
"""Hidden size below which a model is one for trying things out: none in use has less."""


class Worth(StrEnum):
    """What a plan is on a cluster."""

    PAYS = "worth it"
    NO_DIFFERENCE = "no difference"
    SLOWER = "slower"


@dataclass(frozen=True, slots=True)
class Saving:
    """What a plan saves of a step.

    Attributes:
        before: the step without it.
        after: the step under it.
    """

    before: StepTime
    after: StepTime

    @property
    def share(self) -> float:
        """Of the time before; below 0 the plan costs time."""
        return 1.0 - self.after.total / self.before.total if self.before.total else 0.0

    @property
    def worth(self) -> Worth:
        """Whether the plan pays, by `PREDICTION_ERROR`."""
        if abs(self.share) < PREDICTION_ERROR:
            return Worth.NO_DIFFERENCE
        return Worth.PAYS if self.share > 0 else Worth.SLOWER

    @property
    def change(self) -> str:
        """By how much a step changes, in words: `12.0 % less time a step`."""
        percent = round(100 * self.share, 1)
        if percent == 0:
            return "the same time a step"
        return f"{abs(percent):.1f} % {'less' if percent > 0 else 'more'} time a step"

    @property
    def headline(self) -> str:
        """The verdict, in words."""
        if self.worth is Worth.NO_DIFFERENCE:
            return f"No difference that a prediction can tell: {self.change}"
        percent = f"{100 * abs(self.share):.1f} %"
        return f"Saves {percent} of a step" if self.share > 0 else f"Adds {percent} to a step"


def break_even_tokens(
    profile: CollaborationProfile, plan: Plan, cluster: Cluster, workload: Workload
) -> int | None:
    """The fewest tokens a rank of `BATCHES` from which the plan pays; None where it never does.

    Each step is that of the fastest dispatcher. Arguments and errors as `predict_time`.
    """
    check_ranks(profile, plan, cluster)
    before, after = (all_shares(profile, tried, cluster.topology) for tried in (None, plan))
    for tokens in BATCHES:
        size = replace(workload, tokens_per_rank=tokens)
        steps = (measured_time(shares, cluster, size) for shares in (before, after))
        if Saving(*steps).worth is Worth.PAYS:
            return tokens
    return None


def smallness(step: StepTime, workload: Workload) -> str:
    """What times of a very small model do not tell; empty for others."""
    size = workload.sizes.hidden_size
    if size >= _SMALL:
        return ""
    return (
        f"The model is very small (hidden size {size}): {100 * step.fixed_share:.0f} % of a step "
        "is latency and launches, whatever is sent, and its experts compute next to nothing. These "
        "times tell nothing about a model of usual size."
    )


def hindrance(experts_per_rank: float, topology: ClusterTopology, load: float) -> str:
    """Why placement alone cannot save more, and what can; empty where nothing is in its way.

    Args:
        experts_per_rank: E over the ranks.
        topology: the ranks.
        load: of the busiest rank over the mean, once the experts are placed.
    """
    if topology.num_ranks == 1:
        return ""
    busiest = f"the busiest rank has {load:.2f} times the mean work"
    if experts_per_rank <= 1:
        hops = ", only save hops between nodes" if topology.num_nodes > 1 else ""
        return (
            f"Each rank holds one expert: placement cannot bring experts together or even out "
            f"their work{hops} ({busiest}). Replicas can: `--replicas auto`."
        )
    if load > UNEVEN:
        return (
            f"Still {busiest}, and all wait for it. Replicas of the busiest experts can even "
            "that out: `--replicas auto`."
        )
    return ""
