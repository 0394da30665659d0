"""Which rank holds which expert: mt-kahypar starts, a search over swaps finishes."""

from dataclasses import dataclass, field, replace

import numpy as np

from c2r.errors import PlanError
from c2r.planning.placement.balance import canonical_placement, pack_by_load
from c2r.planning.placement.bottleneck import BottleneckCost
from c2r.planning.placement.exact import best_of_all, is_small
from c2r.planning.placement.groups import check_groups, place_groups
from c2r.planning.placement.hypergraph import partition_hypergraph
from c2r.planning.placement.search import PlacementProblem, improve_placement
from c2r.plans.contiguous import contiguous_placement
from c2r.plans.copies import load_max_over_mean, rank_loads
from c2r.plans.holders import NO_EXPERTS
from c2r.plans.topology import ClusterTopology
from c2r.types import Counts, Float, Int

# All chosen by hand when the search was made. benchmarks/placement_quality.py holds what comes out
# against long mt-kahypar runs, benchmarks/placement_scale.py tells the time that large layers take.
_BUDGET_MICROSECONDS = 1_500_000
"""Of a layer at effort 1, as `_step_microseconds` estimates it: a large model in minutes."""
_SEARCH_LENGTH = (120, 400)
"""Bounds of the swaps of one search, 1.5 E between them: fewer leave a small layer unsearched, more
take starts from a large one."""
_SHAKEN = 0.25
"""Share of the experts that a restart moves: with few the search falls back into the same optimum,
with many it begins anew."""
_MAX_STARTS = 8
"""Starts before the best is shaken: the rest of the budget improves what is good already."""
_PATIENCE = 8
"""Restarts in a row without a gain that end the search before its budget."""
_TOLERANCE = 1 + 1e-9  # of the load limit: what float sums may exceed it by


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlacementOptions:
    """How to search, and what to keep to.

    Attributes:
        seed: the same seed gives the same placement.
        max_load: bound on the largest rank load over the mean; None for none.
        start: `[E]` a placement to improve, tried beside the others; the result is not worse.
        inter_node_cost: what a copy to a node costs on top of a copy to a rank, in such copies:
            how many times slower the network between nodes is than the link within; counts only
            where there are several nodes.
        effort: how long to search; 1 takes at most a few seconds a layer, whatever its size.
        bottleneck: place for the least cost of the busiest rank and node instead of the fewest
            copies; None for the fewest copies.
        num_groups: groups of neighbouring experts that stay whole, see `place_groups`; 1 for none.
        load_margin: how far below `max_load` to stay where that can be; half of it is tried next,
            then none.
        others: the same experts chosen in other texts: sets, counts and load of each. Then the
            worst text counts, and `max_load` holds in each.
        replicas: `[ranks, r]` that are held already, for `replicate_experts` to go on from.
    """

    seed: int = 0
    max_load: float | None = None
    start: Int | None = None
    inter_node_cost: float = 8.0
    effort: float = 1.0
    bottleneck: BottleneckCost | None = None
    num_groups: int = 1
    load_margin: float = 0.0
    others: tuple[tuple[Int, Counts, Counts], ...] = ()
    replicas: Int = field(default_factory=lambda: NO_EXPERTS)


def place_experts(
    sets: Int,
    counts: Counts,
    load: Counts,
    topology: ClusterTopology,
    options: PlacementOptions | None = None,
) -> Int:
    """The placement with the fewest copies per token that could be found.

    Ranks hold equally many experts, differing by at most one where R does not divide E. Few
    experts (at most 50,000 placements) are placed by trying all; more by tabu search over swaps
    from mt-kahypar's placement, the contiguous one and random ones. Sets {0, 2} and {1, 3} on two
    ranks give `[0, 1, 0, 1]`.

    Args:
        sets: `[sets, k]` distinct expert ids in each row.
        counts: `[sets]` tokens, or any non-negative weights, of each set.
        load: `[E]` tokens of each expert, in any unit; only `max_load` asks for it.
        topology: the devices.
        options: seed, bound on load, a start to improve; the defaults where None.

    Returns:
        `[E]` int64, the rank of each expert; ranks are numbered by their lowest expert, node by
        node.

    Raises:
        PlanError: more ranks than experts, or no placement within `max_load` could be found.
    """
    options = options or PlacementOptions()
    num_experts, num_ranks = len(load), topology.num_ranks
    check_ranks(num_experts, num_ranks)
    if options.num_groups > 1:
        check_groups(num_experts, options.num_groups, topology)
    _check_start(options.start, num_experts, num_ranks)
    if not options.inter_node_cost >= 0:
        raise PlanError(f"inter_node_cost = {options.inter_node_cost:g}; choose 0 or more")
    margins = dict.fromkeys((options.load_margin, options.load_margin / 2, 0.0))
    for margin in margins:
        rng = np.random.default_rng(options.seed)
        problem = _problem(sets, counts, load, topology, options, margin)
        placement = _placed(problem, options, rng)
        if problem.excess(placement) <= 0:
            return canonical_placement(placement, num_ranks, topology.num_nodes)
    tried = [placement] if problem.others else [placement, _packed(problem, rng)]
    best = min(_largest_load(problem, each) for each in tried)
    raise PlanError(
        f"no placement of {num_experts} experts on {num_ranks} ranks keeps the rank load "
        f"within {options.max_load:g} times the mean; the best found has {best:.4f}: ask for "
        f"at least {np.ceil(best * 1000) / 1000:g}, or for fewer ranks"
    )


def _placed(problem: PlacementProblem, options: PlacementOptions, rng: np.random.Generator) -> Int:
    if problem.num_groups > 1:
        return place_groups(problem, *_budget(problem, options), rng)
    return best_of_all(problem) if is_small(problem) else _search(problem, options, rng)


def _problem(
    sets: Int,
    counts: Counts,
    load: Counts,
    topology: ClusterTopology,
    options: PlacementOptions,
    margin: float,
) -> PlacementProblem:
    max_load = options.max_load
    if max_load is not None and margin:
        max_load = max(max_load - margin, 1.0)
    total = float(counts.sum())
    problems = [
        PlacementProblem(
            sets=chosen,
            # Costs of texts are compared: each counts as many tokens as the first.
            counts=number if number is counts else _scaled(number, total),
            load=loads.astype(np.float64),
            topology=topology,
            load_limit=_load_limit(loads, topology.num_ranks, max_load),
            inter_node_cost=options.inter_node_cost,
            bottleneck=options.bottleneck,
            num_groups=options.num_groups,
        )
        for chosen, number, loads in ((sets, counts, load), *options.others)
    ]
    return replace(problems[0], others=tuple(problems[1:]))


def _scaled(counts: Counts, total: float) -> Float:
    scaled: Float = counts.astype(np.float64) * (total / float(counts.sum()))
    return scaled


def _largest_load(problem: PlacementProblem, placement: Int) -> float:
    """Load of the busiest rank over the mean, in the worst of the texts."""
    return max(
        load_max_over_mean(rank_loads(text.load, placement, text.topology.num_ranks))
        for text in (problem, *problem.others)
    )


def check_ranks(num_experts: int, num_ranks: int) -> None:
    """Raises `PlanError` where there are more ranks than experts."""
    if num_ranks > num_experts:
        raise PlanError(
            f"{num_experts} experts cannot be placed on {num_ranks} ranks; "
            f"choose at most {num_experts} ranks"
        )


def _check_start(start: Int | None, num_experts: int, num_ranks: int) -> None:
    if start is None:
        return
    sizes = np.bincount(start, minlength=num_ranks)
    if len(start) != num_experts or len(sizes) != num_ranks or sizes.max() - sizes.min() > 1:
        raise PlanError(
            f"a start with {sizes.tolist()} experts per rank does not place {num_experts} experts "
            f"evenly on {num_ranks} ranks; sizes may differ by one"
        )


def _load_limit(load: Counts, num_ranks: int, max_load: float | None) -> float:
    if max_load is None:
        return float("inf")
    if not max_load >= 1:
        raise PlanError(
            f"max_load = {max_load:g} asks for less than the mean load on every rank; "
            "choose 1.0 or more"
        )
    return max_load * _TOLERANCE * float(load.sum()) / num_ranks


def _packed(problem: PlacementProblem, rng: np.random.Generator) -> Int:
    return pack_by_load(problem.load, problem.topology.num_ranks, problem.load_limit, rng)


def _search(problem: PlacementProblem, options: PlacementOptions, rng: np.random.Generator) -> Int:
    """Short searches from several starts, then, shaken each time, from the best so far."""
    num_experts, num_ranks = problem.num_experts, problem.topology.num_ranks
    num_searches, length = _budget(problem, options)
    contiguous = contiguous_placement(num_experts, num_ranks)
    # The contiguous placement counts as found, unsearched: so the result is never worse than it.
    starts = _known_starts(problem, options, rng)
    found = [contiguous, *starts]
    while len(starts) < min(num_searches // 2, _MAX_STARTS):
        starts.append(rng.permutation(contiguous))
    for start in starts:
        # Nodes are settled first: a copy to a node costs most, and swaps seldom cross nodes later.
        nested = _nodes_first(problem, start, length, rng)
        found.append(improve_placement(problem, nested, length, rng))
    best = min(found, key=problem.order)
    without_gain = 0
    for _ in range(max(1, num_searches - len(starts))):
        shaken = improve_placement(problem, _shake(best, rng), length, rng)
        without_gain += 1
        if problem.order(shaken) < problem.order(best):
            best, without_gain = shaken, 0
        if without_gain == _PATIENCE:
            break
    return best


def _budget(problem: PlacementProblem, options: PlacementOptions) -> tuple[int, int]:
    """How many searches, and of how many swaps each."""
    length = int(np.clip(1.5 * problem.num_experts, *_SEARCH_LENGTH))
    budget = _BUDGET_MICROSECONDS * options.effort / _step_microseconds(problem)
    return max(2, round(budget / length)), length


def _known_starts(
    problem: PlacementProblem, options: PlacementOptions, rng: np.random.Generator
) -> list[Int]:
    starts = [] if options.start is None else [options.start]
    if np.isfinite(problem.load_limit) or problem.bottleneck is not None:
        starts.append(_packed(problem, rng))
    partition = partition_hypergraph(
        problem.sets, problem.counts, problem.num_experts, problem.topology.num_ranks, options.seed
    )
    return starts if partition is None else [*starts, partition]


def _step_microseconds(problem: PlacementProblem) -> float:
    """About what one swap costs; only the sizes count, never the clock.

    With the clock the same seed would give another plan on another machine. Three terms: the calls
    of numpy, the pins of the sets that hold one of the two experts, and the [E, E] table of swaps.
    The factors are from measurements on a machine that was not recorded: on another the budget is
    met less exactly, but the plan stays the same.
    """
    touched = 2.0 * problem.sets.size * problem.sets.shape[1] / problem.num_experts
    each: float = 100 + 0.03 * touched + 0.022 * problem.num_experts**2
    return each if problem.topology.num_nodes == 1 else 2 * each


def _nodes_first(
    problem: PlacementProblem, start: Int, steps: int, rng: np.random.Generator
) -> Int:
    """`start` with experts exchanged between nodes so that fewest nodes are visited."""
    topology = problem.topology
    if topology.num_nodes == 1:
        return start
    by_node = replace(
        problem,
        topology=ClusterTopology(num_ranks=topology.num_nodes),
        load_limit=float("inf"),
        bottleneck=None,
        others=(),
    )
    nodes = improve_placement(by_node, start // topology.ranks_per_node, steps, rng)
    placement = np.empty_like(start)
    for node in range(topology.num_nodes):
        mine = np.flatnonzero(nodes == node)
        local = contiguous_placement(len(mine), topology.ranks_per_node)
        placement[mine] = node * topology.ranks_per_node + local
    return placement


def _shake(placement: Int, rng: np.random.Generator) -> Int:
    """The placement with the ranks of some experts shuffled among them."""
    moved = rng.choice(len(placement), size=max(2, int(_SHAKEN * len(placement))), replace=False)
    shaken = placement.copy()
    shaken[moved] = placement[rng.permutation(moved)]
    return shaken
