from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.errors import PlanError
from c2r.planning import PlacementOptions, place_experts, replicate_experts
from c2r.planning.placement.bottleneck import BottleneckCost
from c2r.planning.placement.replicas import _Replication
from c2r.planning.placement.search import PlacementProblem
from c2r.plans import (
    NO_EXPERTS,
    ClusterTopology,
    assign_ranks,
    contiguous_placement,
    count_distinct,
    count_visits,
    holders_of,
    row_loads,
)
from tests.planning.instances import random_sets


def measure(sets, counts, placement, replicas, topology):
    """Weighted copies to ranks, those to nodes, and the rows of each rank."""
    held = holders_of(placement, replicas, topology.num_ranks)
    ranks = assign_ranks(sets, held, topology.ranks_per_node)
    rows = row_loads(ranks, counts, topology.num_ranks)
    nodes = ranks // topology.ranks_per_node
    return counts @ count_distinct(ranks), counts @ count_distinct(nodes), rows


def every_choice(placement, num_ranks, num_replicas):
    experts = np.arange(len(placement))
    rows = [
        combinations(experts[placement != rank].tolist(), num_replicas) for rank in range(num_ranks)
    ]
    for replicas in product(*rows):
        yield np.array(replicas)


def test_an_expert_chosen_with_another_ranks_is_replicated_there():
    sets, counts = np.array([[0, 1], [2, 3], [0, 2], [0, 3]]), np.array([8, 4, 2, 2])
    placement, topology = np.array([0, 0, 1, 1]), ClusterTopology(num_ranks=2)
    replicas = replicate_experts(sets, counts, placement, topology, 1)
    assert replicas[1].tolist() == [0]
    copies, _, rows = measure(sets, counts, placement, replicas, topology)
    assert copies == 16
    assert rows.max() <= 20  # as without: 12 + 8 on rank 0


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_most_of_what_the_best_of_all_choices_saves_is_saved(num_ranks):
    topology, shares = ClusterTopology(num_ranks=num_ranks), []
    for seed in range(10):
        sets, counts, load = random_sets(6, 3, 300, seed, groups=3)
        placement = place_experts(sets, counts, load, topology)
        without, _, rows = measure(sets, counts, placement, NO_EXPERTS, topology)
        tried = [
            measure(sets, counts, placement, replicas, topology)
            for replicas in every_choice(placement, num_ranks, 1)
        ]
        allowed = [copies for copies, _, loads in tried if loads.max() <= rows.max()]
        if not allowed:
            with pytest.raises(PlanError, match="ask for fewer"):
                replicate_experts(sets, counts, placement, topology, 1)
            continue
        replicas = replicate_experts(sets, counts, placement, topology, 1)
        found = measure(sets, counts, placement, replicas, topology)[0]
        assert found >= min(allowed)
        shares.append((without - found) / (without - min(allowed)))
    assert np.mean(shares) > 0.7


@settings(max_examples=25)
@given(
    st.integers(12, 20),
    st.integers(2, 4),
    st.sampled_from([(2, 1), (3, 1), (4, 1), (4, 2), (6, 3)]),
    st.integers(1, 2),
    st.integers(0, 10**6),
)
def test_copies_fall_load_does_not_rise_and_slots_are_full(
    num_experts, top_k, devices, num_replicas, seed
):
    topology = ClusterTopology(num_ranks=devices[0], num_nodes=devices[1])
    sets, counts, _ = random_sets(num_experts, top_k, 200, seed, groups=3)
    placement = contiguous_placement(num_experts, topology.num_ranks)
    without = measure(sets, counts, placement, NO_EXPERTS, topology)
    node_cost = 8 if topology.num_nodes > 1 else 0
    try:
        replicas = replicate_experts(sets, counts, placement, topology, num_replicas)
    except PlanError as error:
        assert "busiest rank's load" in str(error)
        return
    held = measure(sets, counts, placement, replicas, topology)
    assert held[0] + node_cost * held[1] <= without[0] + node_cost * without[1]
    assert held[2].max() <= without[2].max()
    assert replicas.shape == (topology.num_ranks, num_replicas)
    for rank, experts in enumerate(replicas.tolist()):
        assert len(set(experts) - set(np.flatnonzero(placement == rank))) == num_replicas


def problem_of(sets, counts, load, topology, bottleneck=None):
    return PlacementProblem(
        sets=sets,
        counts=counts,
        load=load.astype(np.float64),
        topology=topology,
        inter_node_cost=8.0,
        bottleneck=bottleneck,
    )


def figures(state):
    """What a state keeps up to date, as plain numbers."""
    return [each.tolist() for each in (state.rank_load, state.visits, state.node_visits)]


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_the_state_stays_that_of_a_fresh_count(num_nodes):
    sets, counts, load = random_sets(12, 4, 200, seed=3, groups=3)
    topology = ClusterTopology(num_ranks=4, num_nodes=num_nodes)
    placement = contiguous_placement(12, 4)
    state = _Replication(problem_of(sets, counts, load, topology), placement, NO_EXPERTS)
    rng = np.random.default_rng(0)
    for _ in range(10):
        free = np.argwhere(~state.holders)
        expert, rank = free[rng.integers(len(free))]
        before = figures(state), state.key
        change = state.hold(expert, rank)
        fresh = assign_ranks(sets, state.holders, topology.ranks_per_node)
        nodes = fresh // topology.ranks_per_node
        assert figures(state) == [
            row_loads(fresh, counts, 4).tolist(),
            count_visits(fresh, counts, 4).tolist(),
            count_visits(nodes, counts, num_nodes).tolist(),
        ]
        after = figures(state), state.key
        state.undo(change)
        assert (figures(state), state.key) == before
        state.hold(expert, rank)
        assert (figures(state), state.key) == after


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
@pytest.mark.parametrize(
    "bottleneck", [None, BottleneckCost(load=1.0, visits=2.0, node_visits=3.0)]
)
def test_what_the_first_replica_promises_comes_true(num_nodes, bottleneck):
    sets, counts, load = random_sets(12, 4, 200, seed=4, groups=3)
    topology = ClusterTopology(num_ranks=4, num_nodes=num_nodes)
    placement = np.random.default_rng(0).permutation(contiguous_placement(12, 4))
    problem = problem_of(sets, counts, load, topology, bottleneck)
    state = _Replication(problem, placement, NO_EXPERTS)
    for rank in range(4):
        promised = np.stack(state.promised(rank), axis=1)
        for expert in range(12):
            if placement[expert] == rank:
                assert promised[expert, 0] == np.inf
                continue
            change = state.hold(expert, rank)
            assert state.key == pytest.approx(tuple(promised[expert]))
            state.undo(change)


def test_to_go_on_from_fewer_is_to_begin_with_none():
    sets, counts, load = random_sets(16, 3, 500, seed=2, groups=4)
    topology = ClusterTopology(num_ranks=4)
    options = PlacementOptions(effort=0.05, bottleneck=BottleneckCost(load=1.0, visits=1.0))
    placement = place_experts(sets, counts, load, topology, options)
    given = sets, counts, placement, topology
    two = replicate_experts(*given, 2, options)
    four = replicate_experts(*given, 4, options)
    begun = replace(options, replicas=two)
    assert replicate_experts(*given, 4, begun).tolist() == four.tolist()
    assert replicate_experts(*given, 2, begun).tolist() == two.tolist()


def test_the_same_seed_gives_the_same_replicas():
    sets, counts, load = random_sets(16, 3, 500, seed=2, groups=4)
    topology = ClusterTopology(num_ranks=4)
    placement = place_experts(sets, counts, load, topology, PlacementOptions(effort=0.05))
    first, again = (replicate_experts(sets, counts, placement, topology, 1) for _ in range(2))
    assert first.tolist() == again.tolist()


@pytest.mark.parametrize("num_replicas", [0, 7, -1])
def test_more_replicas_than_other_experts_are_refused(num_replicas):
    sets, counts, _ = random_sets(12, 2, 50, 0)
    placement, topology = contiguous_placement(12, 2), ClusterTopology(num_ranks=2)
    with pytest.raises(PlanError, match=r"12 experts, 6 of which .* choose at most 6"):
        replicate_experts(sets, counts, placement, topology, num_replicas)


def test_replicas_that_must_raise_the_load_are_refused():
    # Tokens choose one expert each. With all experts on both ranks, even ones run on rank 0.
    sets, counts = np.arange(4)[:, None], np.array([9, 1, 9, 1])
    placement, topology = np.array([0, 0, 1, 1]), ClusterTopology(num_ranks=2)
    with pytest.raises(PlanError, match=r"raise the busiest rank's load by 80 %; ask for fewer"):
        replicate_experts(sets, counts, placement, topology, 2)
