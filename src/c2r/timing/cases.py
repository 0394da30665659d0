"""What is compared: cases, the size of the layer, and what each case took."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from c2r.plans import (
    NO_EXPERTS,
    ClusterTopology,
    LayerPlan,
    contiguous_placement,
    count_visits,
)
from c2r.prediction import Cluster
from c2r.timing.clocks import Spread
from c2r.timing.experts import DeviceRate
from c2r.timing.recording import UNCONSTRAINED, Recording
from c2r.types import Int

NumChunks = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedLayer:
    """Size of the layer to time: tokens of each rank, and of its SwiGLU experts.

    Where a `device` is given, it is emulated and runs the experts: see `EmulatedExperts`.
    """

    num_tokens: int
    hidden_size: int
    intermediate_size: int
    dtype: torch.dtype
    device: DeviceRate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What joins the ranks.

    Attributes:
        interface: the network interface that they send through, to count its bytes; None counts
            none.
        cluster: the cluster that they are or emulate, for the time model to predict it; None
            predicts nothing.
    """

    interface: str | None = None
    cluster: Cluster | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to run the layer.

    Attributes:
        name: what tables call it.
        dispatcher: as `make_dispatcher` knows it.
        routing: name of a routing of the recording.
        is_placed: experts are placed as planned; otherwise in the order of their ids.
        has_replicas: ranks hold the planned replicas too; the experts are then placed as planned.
        num_chunks: parts of the batch whose exchanges and compute overlap; "auto": each layer
            tries several before it is timed, and keeps its fastest.
    """

    name: str
    dispatcher: str
    routing: str = UNCONSTRAINED
    is_placed: bool = False
    has_replicas: bool = False
    num_chunks: NumChunks = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseTimes:
    """What one case took; times, rows and bytes are means over layers, forward and backward.

    Attributes:
        case: what ran.
        seconds: of a layer, until the last rank has finished; over rounds.
        ratio: seconds over the seconds of the first case in the same round.
        parts: mean seconds of a rank: getting rows in order (`reorder`), waiting in `dispatch` and
            in `combine` (each with its backward), and expert `compute`.
        compute_alone: seconds of the expert compute of all ranks at once, nothing sent.
        communication_alone: seconds of all other parts, without the experts.
        rank_load_max_over_mean: expert rows of the busiest rank over the mean.
        rows_received: rows from other ranks that the rank with most of them got on the way out.
        rows_sent: rows to experts of other ranks, of all ranks together.
        rows_predicted: the same, from the routing alone.
        bytes_sent: counted at the interfaces of all ranks; None where nobody counts.
        bytes_predicted: of the rows predicted, both ways, forward and backward.
        predicted: what `c2r.prediction` says the layer takes, in seconds, and its parts; None
            where the cluster is not known.
        error: largest deviation from the output of k-fold dispatch, over its largest value.
        num_chunks: parts that each layer ran in.
    """

    case: Case
    seconds: Spread
    ratio: Spread
    parts: Mapping[str, float]
    compute_alone: Spread
    communication_alone: Spread
    rank_load_max_over_mean: float
    rows_received: float
    rows_sent: float
    rows_predicted: float
    bytes_sent: float | None
    bytes_predicted: float
    predicted: Mapping[str, float] | None
    error: float
    num_chunks: tuple[int, ...]

    @property
    def over_longer_alone(self) -> float:
        """Seconds over the longer of compute and communication alone: 1 is perfect overlap."""
        longer = max(self.compute_alone.median, self.communication_alone.median)
        return self.seconds.median / longer

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {**asdict(self), "over_longer_alone": self.over_longer_alone}


def dispatcher_cases(
    routings: Iterable[str],
    topology: ClusterTopology,
    chunks: Sequence[NumChunks] = (),
    num_replicas: int = 0,
) -> list[Case]:
    """Every way to run the layer, k-fold dispatch first: the baseline.

    Args:
        routings: names of those of a recording; all but the unconstrained run placed only.
        topology: the ranks; on several nodes of several ranks there is hierarchical dispatch too.
        chunks: numbers of parts in which k-fold and the placed cases also overlap; "auto" too.
        num_replicas: further experts of each rank; 0 for no case that has them.
    """
    once = Case(name="zero_redundancy", dispatcher="zero_redundancy")
    placed = replace(once, name="zero_redundancy, placed", is_placed=True)
    cases = [
        Case(name="k_fold", dispatcher="k_fold"),
        Case(name="all_gather", dispatcher="all_gather"),
        once,
        placed,
    ]
    cases += [
        replace(placed, name=f"{placed.name}, {routing}", routing=routing)
        for routing in routings
        if routing != UNCONSTRAINED
    ]
    if num_replicas:
        name = f"{placed.name}, {num_replicas} replicas"
        cases.append(replace(placed, name=name, has_replicas=True))
    overlapped = [case for case in cases if case.is_placed or case.dispatcher == "k_fold"]
    if 1 < topology.num_nodes < topology.num_ranks:
        name = "hierarchical"
        cases += [
            replace(case, name=case.name.replace(case.dispatcher, name), dispatcher=name)
            for case in cases
            if case.dispatcher == once.dispatcher
        ]
    cases += [
        replace(case, name=f"{case.name}, {count} chunks", num_chunks=count)
        for case in overlapped
        for count in chunks
    ]
    return cases


def layer_plan(case: Case, recording: Recording, index: int) -> LayerPlan:
    """Which rank holds which expert of a layer in this case; its policy is not told."""
    num_experts, num_ranks = recording.num_experts, recording.topology.num_ranks
    placement = contiguous_placement(num_experts, num_ranks)
    return LayerPlan(
        num_experts=num_experts,
        top_k=recording.routings[case.routing].expert_ids.shape[2],
        placement=recording.placement[index] if case.is_placed else placement,
        replicas=recording.replicas[index] if case.has_replicas else NO_EXPERTS,
    )


def predict_rows(case: Case, ranks: Int, topology: ClusterTopology) -> int:
    """Rows that leave a rank for another on their way to experts, of all ranks together.

    Args:
        case: whose dispatcher sends them.
        ranks: `[ranks, tokens, k]`, those that compute the experts of each rank's tokens.
        topology: the ranks; hierarchical dispatch goes once to each node, then inside.
    """
    size, per_node = topology.num_ranks, topology.ranks_per_node
    total = 0
    for rank, visited in enumerate(ranks):
        counts = np.ones(len(visited))
        others = np.arange(size) != rank
        if case.dispatcher == "k_fold":
            total += int(np.count_nonzero(visited != rank))
        elif case.dispatcher == "all_gather":
            total += len(visited) * (size - 1)
        elif case.dispatcher == "hierarchical":
            nodes = count_visits(visited // per_node, counts, topology.num_nodes)
            total += int(nodes.sum() - nodes[rank // per_node])
            others = np.arange(size) % per_node != rank % per_node
        if case.dispatcher in ("zero_redundancy", "hierarchical"):
            total += int(count_visits(visited, counts, size)[others].sum())
    return total
