"""Tabu search over swaps of experts between ranks.

Every step makes the best allowed swap of all, even one that costs; going back is forbidden for a
while, so that the search leaves local optima (robust tabu search, Taillard 1991). The change of
every swap is known exactly. A bound on rank load is met by a penalty whose weight rises while the
bound is broken and falls while it is kept.
"""

from dataclasses import dataclass

import numpy as np

from c2r.planning.placement.bottleneck import BottleneckCost, norm_changes
from c2r.planning.placement.gains import SwapGains
from c2r.plans.copies import count_copies, count_visits, rank_loads
from c2r.plans.topology import ClusterTopology
from c2r.types import Counts, Float, Int

_OSCILLATION = 5
"""Steps in a row over the load limit, or within it, after which the penalty doubles or halves: the
search is to cross the limit again and again, where the best placements within it are. Chosen by
hand; the scheme is strategic oscillation (Glover 1989)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlacementProblem:
    """What is placed where, and what a good placement is.

    Attributes:
        sets: `[sets, k]` expert ids, ascending.
        counts: `[sets]` weight of each set, any non-negative numbers.
        load: `[E]` tokens of each expert.
        topology: the devices.
        load_limit: the largest allowed load of a rank, in tokens; infinite for none.
        inter_node_cost: what a copy to a node costs on top, in copies to a rank.
        bottleneck: where given, the cost is that of the busiest rank and node, not of all copies.
        num_groups: only experts of the same of so many groups of neighbours change places.
        others: the same experts chosen in other texts: the worst text costs, and the load is
            bounded in each.
    """

    sets: Int
    counts: Counts
    load: Float
    topology: ClusterTopology
    load_limit: float = float("inf")
    inter_node_cost: float = 0.0
    bottleneck: BottleneckCost | None = None
    num_groups: int = 1
    others: tuple["PlacementProblem", ...] = ()

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.load)

    def cost(self, placement: Int) -> float:
        """Weighted copies of all tokens, those to nodes weighted; or that of the bottleneck."""
        return max([self._own_cost(placement), *(other.cost(placement) for other in self.others)])

    def _own_cost(self, placement: Int) -> float:
        if self.bottleneck is not None:
            return self._bottleneck_cost(self.bottleneck, placement)
        cost = float(self.counts @ count_copies(self.sets, placement))
        if self.topology.num_nodes > 1:
            nodes = placement // self.topology.ranks_per_node
            cost += self.inter_node_cost * float(self.counts @ count_copies(self.sets, nodes))
        return cost

    def _bottleneck_cost(self, cost: BottleneckCost, placement: Int) -> float:
        topology = self.topology
        nodes = placement // topology.ranks_per_node
        return cost.of(
            rank_loads(self.load, placement, topology.num_ranks) * self.rows_per_load,
            count_visits(placement[self.sets], self.counts, topology.num_ranks),
            count_visits(nodes[self.sets], self.counts, topology.num_nodes),
        )

    @property
    def rows_per_load(self) -> float:
        """Expert rows of the counted tokens for a unit of `load`, which may be of other tokens."""
        total = float(self.load.sum())
        return float(self.counts.sum()) * self.sets.shape[1] / total if total > 0 else 0.0

    def excess(self, placement: Int) -> float:
        """Load above the limit, summed over ranks."""
        loads = rank_loads(self.load, placement, self.topology.num_ranks)
        own = float(np.maximum(loads - self.load_limit, 0).sum())
        return own + sum(other.excess(placement) for other in self.others)

    def order(self, placement: Int) -> tuple[float, float]:
        """Sorts placements, better ones first: less excess load, then lower cost."""
        return self.excess(placement), self.cost(placement)


class _SwapSearch:
    """A placement, an empty slot on each rank with an expert less, and all its swap changes.

    Empty slots are experts without load that no set holds: so a move is a swap as well.
    """

    def __init__(self, problem: PlacementProblem, placement: Int) -> None:
        topology = problem.topology
        sizes = np.bincount(placement, minlength=topology.num_ranks)
        self.num_experts = problem.num_experts
        empty = np.flatnonzero(sizes < sizes.max())
        self.placement = np.concatenate([placement, empty])
        self.load = np.concatenate([problem.load, np.zeros(len(empty))])
        self.rank_load = rank_loads(self.load, self.placement, topology.num_ranks)
        self.limit = problem.load_limit
        self._groups = None
        if problem.num_groups > 1:  # they fill their ranks evenly: no slot is empty
            self._groups = np.arange(self.num_experts) * problem.num_groups // self.num_experts
        self._ranks_per_node = topology.ranks_per_node
        self._has_empty = np.zeros(topology.num_ranks, dtype=np.bool_)
        self._has_empty[empty] = True
        self._levels = [
            (1.0, SwapGains(problem.sets, problem.counts, self.placement, topology.num_ranks))
        ]
        if topology.num_nodes > 1:
            nodes = self.placement // self._ranks_per_node
            gains = SwapGains(problem.sets, problem.counts, nodes, topology.num_nodes)
            self._levels.append((problem.inter_node_cost, gains))

        self._bottleneck = problem.bottleneck
        self._rows_per_load = problem.rows_per_load

    @property
    def cost(self) -> float:
        if self._bottleneck is None:
            return sum(weight * gains.cost for weight, gains in self._levels)
        return self._bottleneck.of(
            self.rank_load * self._rows_per_load,
            self._levels[0][1].visits,
            self._levels[-1][1].visits,
        )

    @property
    def excess(self) -> float:
        return float(np.maximum(self.rank_load - self.limit, 0).sum())

    def changes(self, penalty: float) -> Float:
        """Penalised change of every swap; infinite for swaps that are none."""
        return self.possible(self.cost_changes() + penalty * self.excess_changes())

    def cost_changes(self) -> Float:
        """`[E, E]` change of the cost, smoothed over ranks where the busiest costs."""
        if self._bottleneck is not None:
            return self._bottleneck_changes(self._bottleneck)
        changes = self._levels[0][1].changes()
        for weight, gains in self._levels[1:]:
            changes += weight * gains.changes()
        return changes

    def possible(self, changes: Float) -> Float:
        """The same changes, infinite for swaps that are none."""
        ranks = self.placement
        changes[ranks[:, None] == ranks] = np.inf
        if self._groups is not None:
            changes[self._groups[:, None] != self._groups] = np.inf
        # An empty slot may move, but not onto a rank that has one: sizes would differ by two.
        full = self._has_empty[ranks]
        changes[self.num_experts :, full] = np.inf
        changes[full, self.num_experts :] = np.inf
        return changes

    def _bottleneck_changes(self, cost: BottleneckCost) -> Float:
        loads = self.load * self._rows_per_load
        moved = loads - loads[:, None]
        rank_rows = self.rank_load * self._rows_per_load
        changes = cost.load * norm_changes(rank_rows, self.placement, moved)
        weights = (cost.visits, cost.node_visits)
        for weight, (_, gains) in zip(weights, self._levels, strict=False):
            if weight:
                changes += weight * norm_changes(gains.visits, gains.labels, gains.visit_changes())
        return changes

    def excess_changes(self) -> Float | float:
        """`[E, E]` change of the load above the limit when two experts swap; 0 without a limit."""
        if not np.isfinite(self.limit):
            return 0.0

        def over(load: Float) -> Float:
            return np.maximum(load - self.limit, 0)

        # Each side alone, here for there, then the sum with its transpose is the whole swap.
        here = self.rank_load[self.placement]
        heavier = here[:, None] + self.load - self.load[:, None]
        half = over(heavier) - over(here)[:, None]
        return half + half.T

    def swap(self, first: int, second: int) -> None:
        for _, gains in self._levels:
            gains.swap(first, second)
        ours, theirs = self.placement[first], self.placement[second]
        moved = self.load[first] - self.load[second]
        self.rank_load[ours] -= moved
        self.rank_load[theirs] += moved
        self.placement[first], self.placement[second] = theirs, ours
        for expert in (first, second):
            if expert >= self.num_experts:
                self._has_empty[[ours, theirs]] ^= True


class _WorstSearch:
    """One placement seen in several texts: what the worst of them costs."""

    def __init__(self, problem: PlacementProblem, placement: Int) -> None:
        texts = (problem, *problem.others)
        self._texts = [_SwapSearch(text, placement) for text in texts]
        self.num_experts = problem.num_experts

    @property
    def placement(self) -> Int:
        return self._texts[0].placement

    @property
    def cost(self) -> float:
        return max(text.cost for text in self._texts)

    @property
    def excess(self) -> float:
        return sum(text.excess for text in self._texts)

    def changes(self, penalty: float) -> Float:
        costs = [text.cost for text in self._texts]
        after = [cost + text.cost_changes() for cost, text in zip(costs, self._texts, strict=True)]
        excess = sum(text.excess_changes() for text in self._texts)
        changes: Float = np.maximum.reduce(after) - max(costs) + penalty * excess
        return self._texts[0].possible(changes)

    def swap(self, first: int, second: int) -> None:
        for text in self._texts:
            text.swap(first, second)


_Search = _SwapSearch | _WorstSearch


def _searching(problem: PlacementProblem, placement: Int) -> _Search:
    return (_WorstSearch if problem.others else _SwapSearch)(problem, placement)


class _Memory:
    """Until which step an expert may not return to a rank, and the best placement met."""

    def __init__(self, state: _Search, num_ranks: int) -> None:
        self._until = np.zeros((len(state.placement), num_ranks), dtype=np.int64)
        self._tolerance = 1e-9 * max(state.cost, 1.0)
        self.best = state.placement[: state.num_experts].copy()
        self._best_key = (state.excess, state.cost)
        self.stale = 0

    def forbid(self, changes: Float, state: _Search, step: int) -> None:
        """Makes forbidden swaps infinite, unless they lead below the best cost."""
        # Aspiration: a swap back is allowed where it beats the best placement met.
        held = self._until[:, state.placement] > step
        beaten = state.cost + changes < self._best_key[1] - self._tolerance
        changes[(held | held.T) & ~beaten] = np.inf

    def remember(self, state: _Search, pair: tuple[int, int], until: Int) -> None:
        """Forbids the swap back of `pair`, which is about to be swapped."""
        self._until[pair, state.placement[list(pair)]] = until

    def compare(self, state: _Search) -> None:
        """Keeps the state where it has less excess, or the same and a lower cost."""
        excess, cost = self._best_key
        less_excess = state.excess < excess - self._tolerance
        cheaper = state.excess <= excess and state.cost < cost - self._tolerance
        self.stale += 1
        if less_excess or cheaper:
            self.best = state.placement[: state.num_experts].copy()
            self._best_key = (state.excess, state.cost)
            self.stale = 0


def improve_placement(
    problem: PlacementProblem, start: Int, steps: int, rng: np.random.Generator
) -> Int:
    """The best placement met in `steps` swaps from `start`; never worse than it.

    A placement within the load limit beats any that is not; among those that are not, the one
    with less excess wins. The search stops early when a quarter of the steps brought nothing.

    Args:
        problem: what is placed where.
        start: `[E]` ranks whose sizes differ by at most one; so will those of the result.
        steps: how many swaps at most.
        rng: draws for how long a swap back is forbidden.
    """
    state = _searching(problem, start)
    memory = _Memory(state, problem.topology.num_ranks)
    # How long a swap back is forbidden is drawn anew each time, so that the search falls into no
    # cycle (Taillard 1991). The bounds, 3 to 4 + E / 4, are chosen by hand.
    longest = 4 + len(state.placement) // 4
    # To begin with, an expert of mean load above the limit costs as much as one copy of all tokens.
    penalty, streak = float(problem.counts.sum() / max(problem.load.mean(), 1e-300)), 0
    for step in range(1, steps + 1):
        changes = state.changes(penalty)
        memory.forbid(changes, state, step)
        first, second = divmod(int(np.argmin(changes)), len(changes))
        if np.isfinite(changes[first, second]):
            memory.remember(state, (first, second), step + rng.integers(3, longest, size=2))
            state.swap(first, second)
            memory.compare(state)
        if memory.stale > steps // 4:
            break
        streak = max(streak, 0) + 1 if state.excess > 0 else min(streak, 0) - 1
        if abs(streak) >= _OSCILLATION:
            penalty, streak = penalty * (2.0 if streak > 0 else 0.5), 0
    return memory.best
