"""Placements that keep groups of neighbouring experts together, as renumbering experts must.

A group-limited router (DeepSeek-V2, -V3) compares groups of E / G neighbouring experts. Renumbering
keeps its function only where groups stay whole: a rank holds whole groups, or several ranks in a
row share one.
"""

from itertools import combinations

import numpy as np

from c2r.errors import PlanError
from c2r.planning.placement.search import PlacementProblem, improve_placement
from c2r.plans.contiguous import contiguous_placement
from c2r.plans.topology import ClusterTopology
from c2r.types import Int


def check_groups(num_experts: int, num_groups: int, topology: ClusterTopology) -> None:
    """Raises `PlanError` where the ranks or nodes cannot be filled with whole groups.

    Ranks must divide the groups, or each group several ranks evenly; so must nodes.
    """
    if num_experts % num_groups:
        raise PlanError(f"{num_experts} experts do not make {num_groups} groups of one size")
    fitting = [
        ranks
        for ranks in range(1, num_experts + 1)
        if num_experts % ranks == 0 and (num_groups % ranks == 0 or ranks % num_groups == 0)
    ]
    if topology.num_ranks not in fitting:
        raise PlanError(
            f"{num_groups} groups of {num_experts // num_groups} experts cannot stay whole on "
            f"{topology.num_ranks} ranks; choose {', '.join(map(str, fitting))} ranks, or leave "
            "--keep-groups out and serve with an engine that loads placements"
        )
    if num_groups % topology.num_nodes and topology.num_nodes % num_groups:
        raise PlanError(
            f"{num_groups} groups of experts cannot be shared out evenly over "
            f"{topology.num_nodes} nodes; choose a number of nodes that divides {num_groups}"
        )


def place_groups(
    problem: PlacementProblem, num_searches: int, length: int, rng: np.random.Generator
) -> Int:
    """The best placement found that keeps `problem.num_groups` groups together.

    Whole groups are exchanged first, then experts within each group, by as many searches of
    `length` swaps at most.
    """
    best = _exchange_groups(problem)
    if problem.topology.num_ranks <= problem.num_groups:
        return best
    best = improve_placement(problem, best, length, rng)
    for _ in range(num_searches - 1):
        shaken = improve_placement(problem, _shuffled(best, problem.num_groups, rng), length, rng)
        best = min(best, shaken, key=problem.order)
    return best


def _exchange_groups(problem: PlacementProblem) -> Int:
    """Groups in the order in which no exchange of two is better."""
    num_groups, topology = problem.num_groups, problem.topology
    ranks = contiguous_placement(problem.num_experts, topology.num_ranks).reshape(num_groups, -1)
    # Of groups on one rank, or with ranks of their own on one node, an exchange changes nothing.
    size = 1 if topology.num_ranks < num_groups else topology.ranks_per_node
    order = np.arange(num_groups)
    best = problem.order(ranks[order].ravel())
    is_better = True
    while is_better:
        is_better = False
        for first, second in combinations(range(num_groups), 2):
            if ranks[order[first], 0] // size == ranks[order[second], 0] // size:
                continue
            tried = order.copy()
            tried[[first, second]] = order[[second, first]]
            found = problem.order(ranks[tried].ravel())
            if found < best:
                order, best, is_better = tried, found, True
    return ranks[order].ravel()


def _shuffled(placement: Int, num_groups: int, rng: np.random.Generator) -> Int:
    """The placement with the experts of every group shuffled over its ranks."""
    groups = placement.reshape(num_groups, -1)
    return np.concatenate([rng.permutation(group) for group in groups])
