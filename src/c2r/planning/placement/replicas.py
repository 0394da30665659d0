"""Which experts to hold on further ranks: slot by slot what saves most, then each slot anew.

A replica of expert e on rank q saves a visit of each token that visits q anyway, and another rank
for e alone; and of the tokens that e alone takes to a rank, some turn to q. What that changes, in
visits and loads, is told for all experts at once, as if of each token no other choice turned too.
The expert that promises most is then held: the tokens concerned are sent anew, and what it really
changes is counted. No rank may end with more load than the busiest had without replicas.
"""

from typing import NamedTuple

import numpy as np

from c2r.errors import PlanError
from c2r.planning.placement.place import PlacementOptions
from c2r.planning.placement.search import PlacementProblem
from c2r.plans.copies import rank_loads
from c2r.plans.holders import assign_ranks, holders_of
from c2r.plans.topology import ClusterTopology
from c2r.types import Bool, Counts, Float, Int

Pair = tuple[int, int]
"""An expert and a rank that holds a replica of it."""

_DOUBLINGS = (2, 3, 4)
"""Of the p of the norm by which passes see the busiest rank: 4, 8, 16. The first relieve all ranks,
the last the busiest. With 16 from the start, layers of gpt-oss-20b on 16 ranks took 6 % more time
for two replicas; chosen there, see `benchmarks/replicas_cost.py`."""
_MAX_PATIENCE = 8
"""Random refills in a row without a gain before the search ends, where layers are small."""
_REFILL_BUDGET = 200_000
"""Choices of experts, once for each slot, in refills without a gain: large layers have none."""
_TOLERANCE = 1e-9  # gains and limits below it are rounding


class _Change(NamedTuple):
    """A replica that came or went, the sets that moved with it, and where they were before."""

    expert: int
    rank: int
    is_held: bool
    moved: Int
    before: Int


class _Replication:
    """Who holds what, where each set's experts are computed, and what a further replica changes.

    Attributes:
        holders: `[E, ranks]` bool, the ranks that hold each expert.
        rank_load: `[ranks]` tokens that the experts of each rank compute.
        visits: `[ranks]` tokens that visit each rank.
        node_visits: `[nodes]` tokens that visit each node.
        load_limit: what no rank's load may exceed.
        doublings: of the norm by which the busiest rank costs, see `BottleneckCost.smooth`.
    """

    def __init__(self, problem: PlacementProblem, placement: Int, replicas: Int) -> None:
        sets, topology = problem.sets, problem.topology
        num_ranks, num_nodes = topology.num_ranks, topology.num_nodes
        self._problem, self._width, self.doublings = (
            problem,
            topology.ranks_per_node,
            _DOUBLINGS[-1],
        )
        self._sets, self._weights = sets, problem.counts.astype(np.float64)
        self._start = sets.sum(1) % num_ranks
        # The sets of each expert, as in `SwapGains`.
        order = np.argsort(sets, axis=None, kind="stable") // sets.shape[1]
        ends = np.cumsum(np.bincount(sets.ravel(), minlength=len(placement)))
        self._sets_of = np.split(order, ends[:-1])
        self.holders = holders_of(placement, replicas, num_ranks)
        self.rank_load, self.visits = np.zeros(num_ranks), np.zeros(num_ranks)
        self.node_visits = np.zeros(num_nodes)
        # Of each set: the choices on each rank and node. Of each choice: its rank, that rank's turn
        # in the set, and whether no other choice of the set is there, or on its node.
        self._held = np.zeros((len(sets), num_ranks), dtype=np.int16)
        self._node_held = np.zeros((len(sets), num_nodes), dtype=np.int16)
        self._ranks, self._turns = np.zeros_like(sets), np.zeros_like(sets)
        self._is_alone, self._is_alone_on_node = (np.zeros(sets.shape, np.bool_) for _ in range(2))
        self._settle(np.arange(len(sets)), assign_ranks(sets, self.holders, self._width))
        # Where the busiest rank is what costs, its load is weighed and needs no limit.
        limit = float(rank_loads(problem.load, placement, num_ranks).max()) * (1 + _TOLERANCE)
        self.load_limit = limit if problem.bottleneck is None else float("inf")

    @property
    def num_choices(self) -> int:
        """Experts of all sets."""
        return self._sets.size

    @property
    def key(self) -> tuple[float, float]:
        """Sorts states, better ones first: less load above the limit, then lower cost."""
        excess, cost = self._keys(self.rank_load, self.visits, self.node_visits)
        return float(excess), float(cost)

    def _keys(self, loads: Float, visits: Float, node_visits: Float) -> tuple[Float, Float]:
        """Excess load and cost, `[...]`, of states `[..., ranks]` and `[..., nodes]`."""
        problem = self._problem
        excess: Float = np.maximum(loads - self.load_limit, 0).sum(-1)
        if problem.bottleneck is not None:
            return excess, problem.bottleneck.smooth(loads, visits, node_visits, self.doublings)
        cost: Float = visits.sum(-1)
        if len(self.node_visits) > 1:
            cost = cost + problem.inter_node_cost * node_visits.sum(-1)
        return excess, cost

    def hold(self, expert: int, rank: int, is_held: bool = True) -> _Change:
        """Holds a replica of `expert` on `rank`, or does so no longer."""
        self.holders[expert, rank] = is_held
        # Only sets that hold the expert can go elsewhere, and only those that do are counted anew.
        concerned = self._sets_of[expert]
        ranks = assign_ranks(self._sets[concerned], self.holders, self._width)
        is_moved = (ranks != self._ranks[concerned]).any(1)
        moved = concerned[is_moved]
        change = _Change(expert, rank, is_held, moved, self._ranks[moved])
        self._settle(moved, ranks[is_moved], change.before)
        return change

    def undo(self, change: _Change) -> None:
        """Takes back the last change."""
        self.holders[change.expert, change.rank] = not change.is_held
        self._settle(change.moved, change.before, self._ranks[change.moved])

    def _settle(self, set_ids: Int, ranks: Int, before: Int | None = None) -> None:
        """Computes the experts of these sets on `ranks` `[sets, k]`; nowhere `before` if None."""
        weights, rows = self._weights[set_ids], np.arange(len(set_ids))
        for sign, there in ((-1, before), (1, ranks)):
            if there is None:
                continue
            weight = np.repeat(sign * weights, there.shape[1])
            self.rank_load += np.bincount(there.ravel(), weight, len(self.rank_load))
            held = np.zeros((len(rows), len(self.rank_load)), dtype=np.int16)
            for column in there.T:
                held[rows, column] += 1
            node_held = held.reshape(len(rows), len(self.node_visits), self._width).sum(
                2, dtype=np.int16
            )
            self.visits += (sign * weights) @ (held > 0)
            self.node_visits += (sign * weights) @ (node_held > 0)
        self._held[set_ids], self._node_held[set_ids] = held, node_held
        self._ranks[set_ids] = ranks
        self._turns[set_ids] = (ranks - self._start[set_ids, None]) % len(self.rank_load)
        self._is_alone[set_ids] = held[rows[:, None], ranks] == 1
        self._is_alone_on_node[set_ids] = node_held[rows[:, None], ranks // self._width] == 1

    def promised(self, rank: int) -> tuple[Float, Float]:
        """Excess load and cost, `[E]`, with a replica of each expert on `rank`.

        Exact where no other choice of a token turns with the expert; infinite where it is there.
        """
        num_experts, num_ranks = self.holders.shape
        num_nodes, node = len(self.node_visits), rank // self._width
        choices = np.flatnonzero(self._turning(rank))
        rows = choices // self._sets.shape[1]
        weights, experts = self._weights[rows], self._sets.ravel()[choices]
        ranks = self._ranks.ravel()[choices]

        def total(chosen: Bool, labels: Int, size: int) -> Float:
            keys = experts[chosen] * size + labels[chosen]
            sums: Float = np.bincount(keys, weights[chosen], num_experts * size).astype(np.float64)
            return sums.reshape(num_experts, size)

        # A choice that turns takes its row along, its visit if it was alone, and to a rank that the
        # set does not visit yet it brings one; so with nodes.
        leaves = self._is_alone.ravel()[choices]
        leaves_node = self._is_alone_on_node.ravel()[choices] & (ranks // self._width != node)
        moved = total(np.ones_like(leaves), ranks, num_ranks)
        loads = self.rank_load - moved
        loads[:, rank] += moved.sum(1)
        visits = self.visits - total(leaves, ranks, num_ranks)
        here = np.zeros_like(ranks)
        visits[:, rank] += total(self._held[rows, rank] == 0, here, 1)[:, 0]
        node_visits = self.node_visits - total(leaves_node, ranks // self._width, num_nodes)
        node_visits[:, node] += total(self._node_held[rows, node] == 0, here, 1)[:, 0]
        excess, cost = self._keys(loads, visits, node_visits)
        return np.where(self.holders[:, rank], np.inf, excess), cost

    def _turning(self, rank: int) -> Bool:
        """`[sets, k]`: whether each choice would be computed on `rank` if that held its expert.

        On a visited rank a choice is computed if it is alone where it is, which then is no longer
        visited, or if that comes later. A rank that is not visited takes only choices that are
        alone, and only from a rank that comes later; but one of a visited node comes first.
        """
        node, num_ranks = rank // self._width, len(self.rank_load)
        is_first = ((rank - self._start) % num_ranks)[:, None] < self._turns
        is_visited = self._held[:, rank, None] > 0
        is_preferred = is_first
        if len(self.node_visits) > 1:
            is_near = self._node_held[:, node, None] > 0
            leaves_node = self._is_alone_on_node
            nearer = (is_near & leaves_node) | ((is_near == ~leaves_node) & is_first)
            is_preferred = np.where(self._ranks // self._width == node, is_first, nearer)
        turning: Bool = np.where(
            is_visited, self._is_alone | is_first, self._is_alone & is_preferred
        )
        return turning


def replicate_experts(
    sets: Int,
    counts: Counts,
    placement: Int,
    topology: ClusterTopology,
    num_replicas: int,
    options: PlacementOptions | None = None,
) -> Int:
    """Further experts of each rank, chosen so that tokens make few copies.

    1, 2, 4, ... of them are searched for, each number beginning with what was found before: those
    of a smaller power of two, given as `options.replicas`, save that work and lead to the same.

    Where {0, 1} is chosen most and {2, 3}, {0, 2} and {0, 3} are chosen too, placed `[0, 0, 1, 1]`,
    rank 1 gets a replica of expert 0.

    Args:
        sets: `[sets, k]` distinct expert ids in each row.
        counts: `[sets]` tokens, or any non-negative weights, of each set.
        placement: `[E]` the rank of each expert.
        topology: the devices.
        num_replicas: r, further experts of each rank, at least 1.
        options: seed, cost of nodes or of the busiest rank, replicas to begin with; the defaults
            where None.

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
    replicas = options.replicas.reshape(topology.num_ranks, -1)
    state = _Replication(problem, placement, replicas)
    while (held := replicas.shape[1]) < num_replicas:
        number = min(max(2 * held, 1), num_replicas)
        _choose(state, replicas, number, np.random.default_rng([options.seed, number]))
        further = state.holders & (placement[:, None] != np.arange(topology.num_ranks))
        replicas = np.nonzero(further.T)[1].reshape(-1, number)
    if state.key[0] > 0:
        raise PlanError(
            f"{num_replicas} replicas per rank would raise the busiest rank's load by "
            f"{(state.rank_load.max() / state.load_limit - 1) * 100:.2g} %; ask for fewer"
        )
    return replicas


def _check_replicas(placement: Int, topology: ClusterTopology, num_replicas: int) -> None:
    own = int(np.bincount(placement, minlength=topology.num_ranks).max())
    if not 1 <= num_replicas <= len(placement) - own:
        raise PlanError(
            f"{num_replicas} replicas per rank do not fit {len(placement)} experts, {own} of which "
            f"a rank holds anyway; choose at most {len(placement) - own}"
        )


def _choose(
    state: _Replication, replicas: Int, num_replicas: int, rng: np.random.Generator
) -> None:
    """Fills the slots that are left, then each anew, then random ones, while that pays."""
    num_ranks, state.doublings = state.holders.shape[1], _DOUBLINGS[0]
    slots = [(int(expert), rank) for rank in range(num_ranks) for expert in replicas[rank]]
    for _ in range(num_replicas - replicas.shape[1]):
        for rank in range(num_ranks):
            expert = _best_expert(state, rank)
            state.hold(expert, rank)
            slots.append((expert, rank))
    for state.doublings in _DOUBLINGS:
        for index in range(len(slots)):
            _refill(state, slots, [index])
    touched = len(slots) * state.num_choices
    patience, without_gain = min(_REFILL_BUDGET // max(touched, 1), _MAX_PATIENCE), 0
    while without_gain < patience:
        emptied = rng.permutation(len(slots))[: rng.integers(len(slots)) + 1]
        without_gain = 0 if _refill(state, slots, emptied.tolist()) else without_gain + 1


def _refill(state: _Replication, slots: list[Pair], emptied: list[int]) -> bool:
    """Fills some slots anew, in the order given, if that is better; whether it was."""
    excess, cost = state.key
    changes = [state.hold(*slots[index], is_held=False) for index in emptied]
    filled = []
    for index in emptied:
        rank = slots[index][1]
        filled.append((_best_expert(state, rank), rank))
        changes.append(state.hold(*filled[-1]))
    if state.key < (excess, cost * (1 - _TOLERANCE)):
        for index, pair in zip(emptied, filled, strict=True):
            slots[index] = pair
        return True
    for change in reversed(changes):
        state.undo(change)
    return False


def _best_expert(state: _Replication, rank: int) -> int:
    """The expert of which a replica on `rank` promises most."""
    excess, cost = state.promised(rank)
    return int(np.lexsort((cost, excess))[0])
