import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.planning import PlacementOptions, place_experts, replicate_experts
from c2r.planning.placement.bottleneck import BottleneckCost, norm_changes
from c2r.planning.placement.gains import SwapGains
from c2r.planning.placement.search import PlacementProblem
from c2r.plans import (
    ClusterTopology,
    assign_ranks,
    contiguous_placement,
    count_visits,
    holders_of,
    rank_loads,
)
from tests.planning.instances import random_sets

VISITS = BottleneckCost(load=0.0, visits=1.0)


def test_the_cost_is_that_of_the_busiest():
    cost = BottleneckCost(load=2.0, visits=10.0, node_visits=100.0)
    loads, visits, nodes = np.array([3.0, 4.0]), np.array([1.0, 0.5]), np.array([1.5])
    assert cost.of(loads, visits, nodes) == 2 * 4 + 10 * 1 + 100 * 1.5


def test_the_smooth_cost_lies_between_mean_and_maximum():
    visits = np.array([1.0, 2.0, 3.0])
    assert 2 < VISITS.smooth(visits, visits, visits) < 3
    even = np.array([2.0, 2.0])
    assert VISITS.smooth(even, even, even) == pytest.approx(2)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_changes_of_visits_are_those_of_the_placement_with_the_swap(seed):
    sets, counts, _ = random_sets(10, 3, 60, seed)
    placement = np.random.default_rng(seed).permutation(contiguous_placement(10, 4))
    gains = SwapGains(sets, counts, placement, 4)
    before = count_visits(placement[sets], counts, 4)
    assert gains.visits == pytest.approx(before)
    first, second = np.random.default_rng(seed + 1).choice(10, 2, replace=False)
    swapped = placement.copy()
    swapped[[first, second]] = placement[[second, first]]
    after = count_visits(swapped[sets], counts, 4)
    changes = gains.visit_changes()
    if placement[first] != placement[second]:
        assert changes[first, second] == pytest.approx((after - before)[placement[first]])
        assert changes[second, first] == pytest.approx((after - before)[placement[second]])
    expected = VISITS.smooth(after, after, after) - VISITS.smooth(before, before, before)
    found = norm_changes(before, placement, changes)[first, second]
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_placing_for_the_busiest_rank_relieves_it(num_nodes):
    sets, counts, load = random_sets(32, 4, 4000, seed=3, groups=4)
    topology = ClusterTopology(num_ranks=4, num_nodes=num_nodes)

    def busiest(placement):
        return count_visits(placement[sets], counts, 4).max()

    by_copies = place_experts(sets, counts, load, topology)
    options = PlacementOptions(bottleneck=VISITS)
    by_busiest = place_experts(sets, counts, load, topology, options)
    assert busiest(by_busiest) < busiest(by_copies)
    assert busiest(by_busiest) < busiest(contiguous_placement(32, 4))
    again = place_experts(sets, counts, load, topology, options)
    assert (again == by_busiest).all()


def test_the_result_is_never_worse_than_experts_in_order():
    for seed in range(5):
        sets, counts, load = random_sets(9, 2, 30, seed)
        cost = BottleneckCost(load=1.0, visits=1.0)
        topology = ClusterTopology(num_ranks=4)
        problem = PlacementProblem(
            sets=sets,
            counts=counts,
            load=load.astype(np.float64),
            topology=topology,
            bottleneck=cost,
        )
        options = PlacementOptions(bottleneck=cost, effort=0.05)
        placement = place_experts(sets, counts, load, topology, options)
        assert problem.cost(placement) <= problem.cost(contiguous_placement(9, 4))


def test_replicas_relieve_the_busiest_rank():
    sets, counts, load = random_sets(16, 3, 2000, seed=5, groups=3)
    topology = ClusterTopology(num_ranks=4)
    cost = BottleneckCost(load=0.25, visits=1.0)
    options = PlacementOptions(bottleneck=cost)
    placement = place_experts(sets, counts, load, topology, options)
    replicas = replicate_experts(sets, counts, placement, topology, 2, options)
    ranks = assign_ranks(sets, holders_of(placement, replicas, 4))
    nodes = np.array([float(counts.sum())])
    before = cost.of(
        rank_loads(load, placement, 4), count_visits(placement[sets], counts, 4), nodes
    )
    weights = np.repeat(counts, sets.shape[1])
    loads = rank_loads(weights, ranks.ravel(), 4)
    assert cost.of(loads, count_visits(ranks, counts, 4), nodes) < before


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_visits_are_kept_exact_over_swaps(seed):
    rng = np.random.default_rng(seed)
    sets, counts, _ = random_sets(12, 3, 80, seed)
    gains = SwapGains(sets, counts, rng.permutation(contiguous_placement(12, 4)), 4)
    for _ in range(20):
        gains.swap(*rng.choice(12, size=2, replace=False))
    assert np.array_equal(gains.visits, count_visits(gains.labels[sets], counts, 4))
