"""Which experts to hold on further ranks: greedy by what each copy saves, then slot by slot again.

A further copy of expert e on rank q saves a copy of each token that visits q anyway and another rank
for e alone. These savings are known for every pair (e, q) and kept up to date as copies are added;
what an addition really changes, cost and rank loads, is counted by sending the tokens concerned
anew. No rank may end with more load than the busiest had without replicas.
"""

from collections.abc import Iterator

import numpy as np

from c2r.planning.placement.copies import Float, Int
from c2r.planning.placement.holders import assign_ranks, holders_of
from c2r.planning.placement.search import PlacementProblem

_TRIED = 12
_MAX_PASSES = 4
_CHUNK = 8192


class _State:
    """Copies held so far, where each set's experts are computed, and what one more would save."""

    def __init__(self, problem: PlacementProblem, placement: Int, num_replicas: int) -> None:
        topology = problem.topology
        num_ranks = topology.num_ranks
        self.holders = holders_of(placement, np.empty((0, 0), dtype=np.int64), num_ranks)
        self.free = np.full(num_ranks, num_replicas)
        self.saved = np.zeros(self.holders.shape)
        self.rank_load = np.zeros(num_ranks)
        self.cost = 0.0
        self._ranks_per_node = topology.ranks_per_node
        self._levels = [(1.0, 1)]
        if topology.num_nodes > 1:
            self._levels.append((problem.inter_node_cost, self._ranks_per_node))
        self._sets, self._weights = problem.sets, problem.counts.astype(np.float64)
        order = np.argsort(problem.sets, axis=None, kind="stable") // problem.sets.shape[1]
        ends = np.cumsum(np.bincount(problem.sets.ravel(), minlength=len(placement)))
        self._sets_of = np.split(order, ends[:-1])
        self._ranks = placement[problem.sets]
        for start in range(0, len(problem.sets), _CHUNK):
            self._tally(np.arange(start, min(start + _CHUNK, len(problem.sets))), 1)
        self.load_limit = float(self.rank_load.max())

    @property
    def key(self) -> tuple[float, float]:
        """Sorts states, better ones first: less load above the limit, then lower cost."""
        return float(np.maximum(self.rank_load - self.load_limit, 0).sum()), self.cost

    def add(self, expert: int, rank: int) -> None:
        """Holds a copy of `expert` on `rank` too."""
        self._hold(expert, rank, True)

    def remove(self, expert: int, rank: int) -> None:
        """Holds it there no longer."""
        self._hold(expert, rank, False)

    def _hold(self, expert: int, rank: int, held: bool) -> None:
        self.holders[expert, rank] = held
        self.free[rank] += -1 if held else 1
        concerned = self._sets_of[expert]
        self._tally(concerned, -1)
        self._ranks[concerned] = assign_ranks(
            self._sets[concerned], self.holders, self._ranks_per_node
        )
        self._tally(concerned, 1)

    def _tally(self, set_ids: Int, sign: int) -> None:
        experts, ranks = self._sets[set_ids], self._ranks[set_ids]
        weights = np.broadcast_to(sign * self._weights[set_ids, None], experts.shape)
        num_experts, num_ranks = self.holders.shape
        self.rank_load += np.bincount(ranks.ravel(), weights.ravel(), num_ranks)
        for price, width in self._levels:
            labels, num_labels = ranks // width, num_ranks // width
            held = (labels[:, :, None] == np.arange(num_labels)).sum(1)
            visited = (held > 0).astype(np.float64)
            self.cost += price * float(weights[:, 0] @ visited.sum(1))
            alone = np.where(np.take_along_axis(held, labels, 1) == 1, weights, 0)
            leaving = np.zeros((len(set_ids), num_experts))
            np.put_along_axis(leaving, experts, alone, 1)
            keys = experts * num_labels + labels
            stays = np.bincount(keys.ravel(), alone.ravel(), num_experts * num_labels)
            saved = leaving.T @ visited - stays.reshape(num_experts, num_labels)
            self.saved += price * saved.repeat(width, axis=1)


def replicate_experts(problem: PlacementProblem, placement: Int, num_replicas: int) -> Int:
    """Further experts of each rank, chosen so that tokens make few copies.

    Args:
        problem: routing sets, their counts, devices and the cost of nodes.
        placement: `[E]` the rank of each expert.
        num_replicas: r, further experts of each rank; with its own at most E.

    Returns:
        `[ranks, r]` int64, ascending; no expert twice on a rank.
    """
    state = _State(problem, placement, num_replicas)
    added = []
    while state.free.any():
        added.append(_add_best(state, problem.load, state.free > 0))
    for _ in range(_MAX_PASSES):
        if not any([_improve(state, problem.load, added, slot) for slot in range(len(added))]):
            break
    further = state.holders.copy()
    further[np.arange(len(placement)), placement] = False
    replicas: Int = np.nonzero(further.T)[1].reshape(-1, num_replicas)
    return replicas


def _improve(state: _State, load: Float, added: list[tuple[int, int]], slot: int) -> bool:
    """Fills one slot anew; whether something better than what it held was found."""
    before, (expert, rank) = state.key, added[slot]
    state.remove(expert, rank)
    added[slot] = _add_best(state, load, np.arange(len(state.free)) == rank)
    if state.key < before:
        return True
    state.remove(*added[slot])
    state.add(expert, rank)
    added[slot] = expert, rank
    return False


def _add_best(state: _State, load: Float, ranks: np.ndarray) -> tuple[int, int]:
    """Adds a copy on one of `ranks`, `[R]` bool, and tells which."""
    cost = state.cost
    tried = {}
    for expert, rank in _candidates(state, load, ranks):
        state.add(expert, rank)
        excess, found = state.key
        if excess == 0 and found < cost:
            return expert, rank
        tried[expert, rank] = excess, found
        state.remove(expert, rank)
    best = min(tried, key=lambda pair: tried[pair])
    state.add(*best)
    return best


def _candidates(state: _State, load: Float, ranks: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of expert and rank: those that save most, then those that move least load."""
    experts, of_ranks = np.nonzero(~state.holders & ranks)
    by_saving = np.lexsort([load[experts], -state.saved[experts, of_ranks]])[:_TRIED]
    by_load = np.argsort(load[experts], kind="stable")[:_TRIED]
    for index in dict.fromkeys([*by_saving, *by_load]):
        yield int(experts[index]), int(of_ranks[index])
