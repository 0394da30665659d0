"""Whether a plan saves time: one rule for every command that judges one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from c2r.plans import ClusterTopology, Plan
from c2r.prediction.cluster import Cluster
from c2r.prediction.rows import DISPATCH_WORDS
from c2r.prediction.shares import RankShares, all_shares
from c2r.prediction.time import StepTime, check_ranks, measured_time, milliseconds
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

    @property
    def by_rows(self) -> float:
        """Milliseconds of a step that fewer rows save, were all ranks given alike."""
        return sum(layer.even for layer in self.before.layers) - sum(
            layer.even for layer in self.after.layers
        )

    @property
    def by_load(self) -> float:
        """Milliseconds of a step that evener ranks save: all but `by_rows`."""
        return self.before.total - self.after.total - self.by_rows

    @property
    def origin(self) -> str:
        """Where the saving comes from, in words: fewer rows, or evener ranks, or neither."""
        (copies, nodes, load), (new_copies, new_nodes, new_load) = (
            (step.part("copies"), step.part("node_copies"), step.part("load"))
            for step in (self.before, self.after)
        )
        ranks = f"a token visits {new_copies:.2f} ranks, {copies:.2f} before"
        if not nodes == new_nodes == 1 and (nodes, new_nodes) != (copies, new_copies):
            ranks += f", on {new_nodes:.2f} nodes, {nodes:.2f} before"
        least = 0.0005 * self.before.total
        better = "fewer rows" if new_copies < copies else "fewer rows between nodes"
        rows = f"{_saved(self.by_rows, least, (better, 'more rows', 'rows'))} ({ranks})"
        names = ("evener ranks", "less even ranks", "ranks")
        busiest = f"load of the busiest {new_load:.2f}, {load:.2f} before"
        even = f"{_saved(self.by_load, least, names)} ({busiest})"
        return f"Of a step, {rows}; {even}."

    def to_json(self) -> dict[str, float | str]:
        """JSON data; milliseconds of a step."""
        return {
            "worth": self.worth,
            "share": self.share,
            "by_rows": self.by_rows,
            "by_load": self.by_load,
        }


def _saved(value: float, least: float, names: tuple[str, str, str]) -> str:
    """What saves or costs so many milliseconds, of which fewer than `least` are none."""
    better, worse, same = names
    if abs(value) < least:
        return f"{same} take as long"
    said = f"{better} save" if value > 0 else f"{worse} cost"
    return f"{said} {milliseconds(abs(value))} ms"


def break_even_tokens(
    profile: CollaborationProfile, plan: Plan, cluster: Cluster, workload: Workload
) -> int | None:
    """The fewest tokens a rank of `BATCHES` at which the plan pays; None where it never does.

    Arguments and errors as `predict_time`.
    """
    check_ranks(profile, plan, cluster)
    before, after = (all_shares(profile, tried, cluster.topology) for tried in (None, plan))
    return next(iter(paying_batches(before, after, cluster, workload)), None)


def paying_batches(
    before: Sequence[RankShares],
    after: Sequence[RankShares],
    cluster: Cluster,
    workload: Workload,
) -> tuple[int, ...]:
    """Which of `BATCHES` a plan pays at, of layers that have these shares without it and under it.

    Each step is that of the fastest dispatcher.
    """
    sizes = {tokens: replace(workload, tokens_per_rank=tokens) for tokens in BATCHES}
    return tuple(
        tokens
        for tokens, size in sizes.items()
        if Saving(*(measured_time(side, cluster, size) for side in (before, after))).worth
        is Worth.PAYS
    )


def pays_at(batches: Sequence[int]) -> str:
    """What `paying_batches` found, in words."""
    if not batches:
        return f"at none of up to {BATCHES[-1]:,} tokens a rank"
    if batches[-1] == BATCHES[-1]:
        return f"from {batches[0]:,} tokens a rank on"
    return f"from {batches[0]:,} to {batches[-1]:,} tokens a rank"


def switching(others: Iterable[StepTime], saving: Saving) -> str:
    """Where how a token is sent decides more than the plan, what that saves; else empty.

    Args:
        others: the step without the plan, as `steps_by_dispatcher` gives it.
        saving: of the plan.
    """
    sent, total = saving.before.dispatcher, saving.before.total
    least = max(total - saving.after.total, PREDICTION_ERROR * total)
    slower = [
        f"{DISPATCH_WORDS[step.dispatcher]} ({milliseconds(step.total)} ms)"
        for step in others
        if step.total - total > least
    ]
    if not slower:
        return ""
    return (
        f"An engine whose step sends each token {', or '.join(slower)} gains more by sending it "
        f"{DISPATCH_WORDS[sent]} ({milliseconds(total)} ms) than by the plan."
    )


def is_of_own_text(profile: CollaborationProfile, plan: Plan) -> bool:
    """Whether the plan was made from the profile, or from another one that shares a text with it.

    False where the files do not tell their texts.
    """
    origin = plan.provenance.get("profile")
    if not isinstance(origin, Mapping):
        return False
    own = dict(profile.provenance)
    return origin == own or not _digests(origin).isdisjoint(_digests(own))


def _digests(provenance: object) -> set[object]:
    """Of all texts that a profile, or those that were merged into it, was counted on."""
    if isinstance(provenance, Mapping):
        known = {provenance["digest"]} if isinstance(provenance.get("digest"), str) else set()
        return known.union(*map(_digests, provenance.values()))
    if isinstance(provenance, list | tuple):
        return set().union(*map(_digests, provenance))
    return set()


def fewness(num_tokens: int, top_k: int, num_experts: int) -> str:
    """How little few tokens tell of the load of experts; empty where they tell enough."""
    rows = num_tokens * top_k / num_experts
    error = 1 / math.sqrt(max(rows, 1.0))
    if error <= PREDICTION_ERROR:
        return ""
    enough = math.ceil(num_experts / top_k / PREDICTION_ERROR**2)
    return (
        f"Few tokens were counted: {num_tokens:,}, some {rows:,.0f} for each expert, which tells "
        f"its load to about {round(100 * error, 1):g} %; {enough:,} tell it to "
        f"{100 * PREDICTION_ERROR:.0f} %."
    )


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
            f"their work{hops} ({busiest}). Replicas can: `c2r plan --replicas auto`."
        )
    if load > UNEVEN:
        return (
            f"Still {busiest}, and all wait for it. Replicas of the busiest experts can even "
            "that out: `c2r plan --replicas auto`."
        )
    return ""
