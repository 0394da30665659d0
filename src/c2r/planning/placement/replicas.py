"""Which experts to hold on further ranks: greedy by what each replica saves, then slots anew.

A replica of expert e on rank q saves a visit of each token that visits q anyway, and another rank
for e alone. These savings are known for every pair (e, q) and kept up to date as replicas are
added; what an addition really changes, cost and rank loads, is counted by sending the tokens
concerned anew. No rank may end with more load than the busiest had without replicas.
"""

from collections.abc import Iterator

import numpy as np

from c2r.errors import PlanError
from c2r.planning.placement.place import PlacementOptions
from c2r.planning.placement.search import PlacementProblem
from c2r.plans.holders import NO_EXPERTS, assign_ranks, holders_of
from c2r.plans.topology import ClusterTopology
from c2r.types import Bool, Counts, Float, Int

Pair = tuple[int, int]
"""An expert and a rank that holds a replica of it."""

# Chosen by hand; benchmarks/placement_replicas.py shows what comes out on the embedded model.
_TRIED = 12
"""Replicas really tried for a slot, by saving, and as many by load: the savings kept know neither
how tokens turn to other holders nor the limit on load."""
_MAX_PASSES = 4
"""Passes that empty each slot once: each is dear, and later ones rarely find anything."""
_MAX_PATIENCE = 8
"""Random refills in a row without a gain before the search ends, where layers are small."""
_REFILL_BUDGET = 1_000_000
"""Expert ids looked at in refills without a gain: large layers end after fewer than that."""
_CHUNK = 8192  # sets at a time, for whom [sets, k, ranks] and [sets, E] tables are held
_TOLERANCE = 1e-9  # gains and limits below it are rounding


class _Replication:
    """Who holds what, where each set's experts are computed, and what a further replica saves.

    Attributes:
        holders: `[E, ranks]` bool, the ranks that hold each expert.
        free: `[ranks]` slots that are still empty.
        saved: `[E, ranks]` the cost that a replica of the expert on that rank would save.
        rank_load: `[ranks]` tokens that the experts of each rank compute.
        cost: weighted copies of all tokens, those to nodes priced as in `PlacementProblem`; or
            that of the bottleneck, smoothed over ranks.
        load_limit: what no rank's load may exceed.
    """

    def __init__(self, problem: PlacementProblem, placement: Int, num_replicas: int) -> None:
        topology = problem.topology
        num_ranks = topology.num_ranks
        self.holders = holders_of(placement, NO_EXPERTS, num_ranks)
        self.free = np.full(num_ranks, num_replicas)
        self.saved = np.zeros(self.holders.shape)
        self.rank_load = np.zeros(num_ranks)
        self._copies_cost = 0.0
        self._bottleneck = problem.bottleneck
        self._ranks_per_node = topology.ranks_per_node
        self._levels = [(1.0, 1)]
        if topology.num_nodes > 1:
            self._levels.append((problem.inter_node_cost, self._ranks_per_node))
        self._visits = [np.zeros(num_ranks // width) for _, width in self._levels]
        self._sets, self._weights = problem.sets, problem.counts.astype(np.float64)
        # The sets of each expert, as in `SwapGains`.
        order = np.argsort(problem.sets, axis=None, kind="stable") // problem.sets.shape[1]
        ends = np.cumsum(np.bincount(problem.sets.ravel(), minlength=len(placement)))
        self._sets_of = np.split(order, ends[:-1])
        self._ranks = placement[problem.sets]
        for start in range(0, len(problem.sets), _CHUNK):
            self._tally(np.arange(start, min(start + _CHUNK, len(problem.sets))), 1)
        # Where the busiest rank is what costs, its load is weighed and needs no limit.
        limit = float(self.rank_load.max()) * (1 + _TOLERANCE)
        self.load_limit = limit if problem.bottleneck is None else float("inf")

    @property
    def cost(self) -> float:
        """See the class."""
        if self._bottleneck is None:
            return self._copies_cost
        return self._bottleneck.smooth(self.rank_load, self._visits[0], self._visits[-1])

    @property
    def key(self) -> tuple[float, float]:
        """Sorts states, better ones first: less load above the limit, then lower cost."""
        return float(np.maximum(self.rank_load - self.load_limit, 0).sum()), self.cost

    def add(self, expert: int, rank: int) -> None:
        """Holds a replica of `expert` on `rank`."""
        self._hold(expert, rank, True)

    def remove(self, expert: int, rank: int) -> None:
        """Holds it there no longer."""
        self._hold(expert, rank, False)

    def _hold(self, expert: int, rank: int, held: bool) -> None:
        self.holders[expert, rank] = held
        self.free[rank] += -1 if held else 1
        # Only sets that hold the expert can go elsewhere, and only those that do are counted anew.
        concerned = self._sets_of[expert]
        ranks = assign_ranks(self._sets[concerned], self.holders, self._ranks_per_node)
        moved = (ranks != self._ranks[concerned]).any(1)
        self._tally(concerned[moved], -1)
        self._ranks[concerned[moved]] = ranks[moved]
        self._tally(concerned[moved], 1)

    def _tally(self, set_ids: Int, sign: int) -> None:
        """Adds what these sets cost, load and could save; takes it out where `sign` is -1."""
        experts, ranks = self._sets[set_ids], self._ranks[set_ids]
        weights = np.broadcast_to(sign * self._weights[set_ids, None], experts.shape)
        num_experts, num_ranks = self.holders.shape
        self.rank_load += np.bincount(ranks.ravel(), weights.ravel(), num_ranks)
        for (price, width), visits in zip(self._levels, self._visits, strict=True):
            labels, num_labels = ranks // width, num_ranks // width
            held = (labels[:, :, None] == np.arange(num_labels)).sum(1)
            visited = (held > 0).astype(np.float64)
            self._copies_cost += price * float(weights[:, 0] @ visited.sum(1))
            visits += weights[:, 0] @ visited
            # An expert alone on its rank frees that visit if it moves to a rank that the set visits
            # anyway. Its own rank is visited too, and is taken out: moving there saves nothing.
            alone = np.where(np.take_along_axis(held, labels, 1) == 1, weights, 0)
            leaving = np.zeros((len(set_ids), num_experts))
            np.put_along_axis(leaving, experts, alone, 1)
            keys = experts * num_labels + labels
            stays = np.bincount(keys.ravel(), alone.ravel(), num_experts * num_labels)
            saved = leaving.T @ visited - stays.reshape(num_experts, num_labels)
            self.saved += price * saved.repeat(width, axis=1)


def replicate_experts(
    sets: Int,
    counts: Counts,
    placement: Int,
    topology: ClusterTopology,
    num_replicas: int,
    options: PlacementOptions | None = None,
) -> Int:
    """Further experts of each rank, chosen so that tokens make few copies.

    Where {0, 1} is chosen most and {2, 3}, {0, 2} and {0, 3} are chosen too, placed `[0, 0, 1, 1]`,
    rank 1 gets a replica of expert 0.

    Args:
        sets: `[sets, k]` distinct expert ids in each row.
        counts: `[sets]` tokens, or any non-negative weights, of each set.
        placement: `[E]` the rank of each expert.
        topology: the devices.
        num_replicas: r, further experts of each rank, at least 1.
        options: seed and cost of nodes; the defaults where None.

    Returns:
        `[ranks, r]` int64, ascending; none of a rank's own experts, and none twice on a rank.

    Raises:
        PlanError: a rank has no r experts left to hold, or the busiest rank's load would rise.
    """
    _check_replicas(placement, topology, num_replicas)
    options = options or PlacementOptions()
    weights = np.repeat(counts.astype(np.float64), sets.shape[1])
    problem = PlacementProblem(
        sets=sets,
        counts=counts,
        load=np.bincount(sets.ravel(), weights, len(placement)).astype(np.float64),
        topology=topology,
        inter_node_cost=options.inter_node_cost,
        bottleneck=options.bottleneck,
    )
    state = _Replication(problem, placement, num_replicas)
    _choose(state, problem, np.random.default_rng(options.seed))
    if state.key[0] > 0:
        raise PlanError(
            f"{num_replicas} replicas per rank would raise the busiest rank's load by "
            f"{(state.rank_load.max() / state.load_limit - 1) * 100:.2g} %; ask for fewer"
        )
    further = state.holders & (placement[:, None] != np.arange(topology.num_ranks))
    replicas: Int = np.nonzero(further.T)[1].reshape(-1, num_replicas)
    return replicas


def _check_replicas(placement: Int, topology: ClusterTopology, num_replicas: int) -> None:
    own = int(np.bincount(placement, minlength=topology.num_ranks).max())
    if not 1 <= num_replicas <= len(placement) - own:
        raise PlanError(
            f"{num_replicas} replicas per rank do not fit {len(placement)} experts, {own} of which "
            f"a rank holds anyway; choose at most {len(placement) - own}"
        )


def _choose(state: _Replication, problem: PlacementProblem, rng: np.random.Generator) -> None:
    """Fills all slots, then each anew, then random ones in random order, while that pays."""
    added = []
    while state.free.any():
        added.append(_add_best(state, problem.load, state.free > 0))
    for _ in range(_MAX_PASSES):
        before = added
        for pair in before:
            added = _refill(state, problem.load, added, [pair])
        if added == before:
            break
    touched = len(added) * problem.sets.size * problem.sets.shape[1] // problem.num_experts
    patience = int(np.clip(_REFILL_BUDGET // max(touched, 1), 1, _MAX_PATIENCE))
    without_gain = 0
    while without_gain < patience:
        emptied = rng.permutation(len(added))[: rng.integers(len(added)) + 1]
        before, added = added, _refill(state, problem.load, added, [added[i] for i in emptied])
        without_gain = without_gain + 1 if added == before else 0


def _refill(state: _Replication, load: Float, added: list[Pair], emptied: list[Pair]) -> list[Pair]:
    """Fills slots anew, in the order given: better replicas, or `added` where none are found."""
    # Replicas are taken out for trial; what brings no gain is undone replica by replica, for a copy
    # of the whole state would cost more than the few sets that a replica concerns.
    excess, cost = state.key
    for pair in emptied:
        state.remove(*pair)
    filled = [_add_best(state, load, np.arange(len(state.free)) == rank) for _, rank in emptied]
    if state.key < (excess, cost * (1 - _TOLERANCE)):
        return [*(pair for pair in added if pair not in emptied), *filled]
    for pair in filled:
        if pair not in emptied:
            state.remove(*pair)
    for pair in emptied:
        if pair not in filled:
            state.add(*pair)
    return added


def _add_best(state: _Replication, load: Float, ranks: Bool) -> Pair:
    """Adds the replica on `ranks` that saves most within the load limit, and tells which.

    The first tried that saves anything within the limit is taken; else the least harmful of all.
    """
    cost = state.cost
    tried = {}
    for pair in _candidates(state, load, ranks):
        state.add(*pair)
        if state.key < (0.0, cost):
            return pair
        tried[pair] = state.key
        state.remove(*pair)
    best = min(tried, key=lambda pair: tried[pair])
    state.add(*best)
    return best


def _candidates(state: _Replication, load: Float, ranks: Bool) -> Iterator[Pair]:
    """The replicas on `ranks`, `[R]`, that save most, then those that move least load."""
    experts, of_ranks = np.nonzero(~state.holders & ranks)
    by_saving = np.argsort(-state.saved[experts, of_ranks], kind="stable")[:_TRIED]
    by_load = np.argsort(load[experts], kind="stable")[:_TRIED]
    for index in dict.fromkeys([*by_saving, *by_load]):
        yield int(experts[index]), int(of_ranks[index])
