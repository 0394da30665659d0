"""What of all tokens comes to each rank in a layer, by whom its experts are computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from c2r.plans import ClusterTopology, LayerPlan, Plan, count_visits, row_loads
from c2r.plans.contiguous import contiguous_placement
from c2r.prediction.traffic import known_sets
from c2r.profiling import CollaborationProfile
from c2r.types import Counts, Float, Int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankShares:
    """What of all tokens comes to each rank, in one layer.

    Attributes:
        rows: `[ranks]` expert rows per token of the batch; the sum is k.
        visits: `[ranks]` share of the tokens that visit each rank.
        node_visits: `[nodes]` share that visit each node.
        expert_chances: `[ranks, E]` rows per token of each expert on each rank that computes it;
            None where they are not known: then the weights of no expert count as read.
    """

    rows: Float
    visits: Float
    node_visits: Float
    expert_chances: Float | None = None

    @property
    def node_means(self) -> "RankShares":
        """As if the ranks of each node had alike."""
        size, num_nodes = len(self.visits), len(self.node_visits)
        rows, visits = (
            each.reshape(num_nodes, -1).mean(1).repeat(size // num_nodes)
            for each in (self.rows, self.visits)
        )
        return replace(self, rows=rows, visits=visits, expert_chances=None)

    @property
    def evened(self) -> "RankShares":
        """As if all ranks, and all nodes, had alike."""
        rows, visits, nodes = (
            np.full_like(each, each.mean()) for each in (self.rows, self.visits, self.node_visits)
        )
        return RankShares(rows=rows, visits=visits, node_visits=nodes)

    @classmethod
    def of(cls, ranks: Int, sets: Int, counts: Counts, topology: ClusterTopology) -> "RankShares":
        """The shares of tokens whose experts `sets` `[sets, k]` are computed on `ranks`."""
        total, size = float(counts.sum()), topology.num_ranks
        num_experts = int(sets.max()) + 1
        weights = np.repeat(counts.astype(np.float64), sets.shape[1]) / total
        keys = ranks.ravel() * num_experts + sets.ravel()
        chances = np.bincount(keys, weights=weights, minlength=size * num_experts)
        nodes = ranks // topology.ranks_per_node
        return cls(
            rows=row_loads(ranks, counts, size) / total,
            visits=count_visits(ranks, counts, size) / total,
            node_visits=count_visits(nodes, counts, topology.num_nodes) / total,
            expert_chances=chances.reshape(size, num_experts).astype(np.float64),
        )


def layer_shares(
    profile: CollaborationProfile, index: int, plan: LayerPlan | None, topology: ClusterTopology
) -> RankShares:
    """What comes to each rank in one layer; experts in the order of their ids without a plan."""
    layer = profile.layers[index]
    sets, counts = known_sets(index, layer, topology)
    if plan is None:
        ranks = contiguous_placement(layer.num_experts, topology.num_ranks)[sets]
    else:
        ranks = plan.ranks_of(sets, topology)
    return RankShares.of(ranks, sets, counts, topology)


def all_shares(
    profile: CollaborationProfile, plan: Plan | None, topology: ClusterTopology
) -> tuple[RankShares, ...]:
    """What comes to each rank in each layer; arguments as `layer_shares`."""
    layers = range(profile.num_layers)
    return tuple(
        layer_shares(profile, index, None if plan is None else plan.layers[index], topology)
        for index in layers
    )


def with_chances(
    measured: Sequence[RankShares], planned: Sequence[RankShares]
) -> tuple[RankShares, ...]:
    """What was measured, reading the experts' weights as plain top-k would on the same placement.

    A measurement does not tell which experts were used. Both are of as many layers.
    """
    pairs = zip(measured, planned, strict=True)
    return tuple(replace(layer, expert_chances=other.expert_chances) for layer, other in pairs)


class Measured(Protocol):
    """What was counted on ranks, such as a `c2r.results.Measurement`."""

    @property
    def rank_rows(self) -> Sequence[Sequence[float]]:
        """`[layers, ranks]` expert rows per token."""

    @property
    def rank_visits(self) -> Sequence[Sequence[float]]:
        """`[layers, ranks]` share of the tokens that visit each rank."""

    @property
    def node_visits(self) -> Sequence[Sequence[float]]:
        """`[layers, nodes]` share that visits each node."""


def measured_shares(found: Measured) -> tuple[RankShares, ...]:
    """What was measured to come to each rank, by layer; which experts were used is not known.

    Empty where it was not measured. Raises `ValueError` unless all are of as many layers.
    """
    return tuple(
        RankShares(
            rows=np.array(each), visits=np.array(visited), node_visits=np.array(visited_nodes)
        )
        for each, visited, visited_nodes in zip(
            found.rank_rows, found.rank_visits, found.node_visits, strict=True
        )
    )
