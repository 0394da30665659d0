"""Placements that keep groups of experts whole."""

from itertools import permutations, product

import numpy as np
import pytest

from c2r.errors import PlanError
from c2r.planning.placement import PlacementOptions, place_experts
from c2r.plans import ClusterTopology, contiguous_placement
from c2r.plans.copies import count_copies


def draw(num_experts, k, num_sets=60, seed=0):
    rng = np.random.default_rng(seed)
    sets = np.array([np.sort(rng.permutation(num_experts)[:k]) for _ in range(num_sets)])
    return sets, rng.integers(1, 20, num_sets), np.ones(num_experts, dtype=np.int64)


def blocks(placement, num_groups):
    """The groups in the order in which renumbering by the placement would give their experts."""
    order = np.argsort(placement, kind="stable")
    return (order // (len(placement) // num_groups)).reshape(num_groups, -1)


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("num_ranks", [2, 4, 8, 16])
def test_groups_stay_whole_and_copies_are_not_more_than_in_order(num_ranks, num_nodes):
    sets, counts, load = draw(32, 4)
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    placement = place_experts(sets, counts, load, topology, PlacementOptions(num_groups=4))
    found = blocks(placement, 4)
    assert (found == found[:, :1]).all()
    assert (np.bincount(placement) == 32 // num_ranks).all()
    contiguous = contiguous_placement(32, num_ranks)
    assert counts @ count_copies(sets, placement) <= counts @ count_copies(sets, contiguous)


def test_whole_groups_on_half_as_many_ranks_are_the_best_of_all():
    sets, counts, load = draw(16, 4)
    topology = ClusterTopology(num_ranks=4)
    placement = place_experts(sets, counts, load, topology, PlacementOptions(num_groups=8))
    best = min(
        counts @ count_copies(sets, np.repeat(ranks, 2))
        for ranks in set(permutations([0, 0, 1, 1, 2, 2, 3, 3]))
    )
    assert counts @ count_copies(sets, placement) == best


def test_experts_within_groups_are_placed_as_well_as_can_be():
    sets, counts, load = draw(8, 3)
    topology = ClusterTopology(num_ranks=4)
    placement = place_experts(sets, counts, load, topology, PlacementOptions(num_groups=2))
    halves = set(permutations([0, 0, 1, 1]))
    best = min(
        counts @ count_copies(sets, np.concatenate([first, np.add(second, 2)]))
        for first, second in product(halves, halves)
    )
    assert counts @ count_copies(sets, placement) == best


@pytest.mark.parametrize(
    ("num_ranks", "num_nodes", "told"),
    [(6, 1, "choose 1, 2, 4, 8, 16 ranks"), (12, 3, "choose"), (16, 8, None), (4, 1, None)],
)
def test_ranks_that_split_groups_are_refused(num_ranks, num_nodes, told):
    sets, counts, load = draw(16, 3)
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    if told is None:
        place_experts(sets, counts, load, topology, PlacementOptions(num_groups=4))
        return
    with pytest.raises(PlanError, match=told):
        place_experts(sets, counts, load, topology, PlacementOptions(num_groups=4))
