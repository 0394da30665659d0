import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2r.plans import NO_EXPERTS, LayerPlan, assign_ranks, holders_of
from c2r.plans.topology import ClusterTopology
from tests.planning.instances import random_sets


def holders(*ranks_of_experts, num_ranks):
    return np.array([[rank in ranks for rank in range(num_ranks)] for ranks in ranks_of_experts])


def assign_slowly(experts, holders, ranks_per_node):
    """The rule, one token at a time."""
    num_ranks = holders.shape[1]
    turn = [(sum(experts) - 1 - rank) % num_ranks for rank in range(num_ranks)]
    visited = {
        rank for e in experts if holders[e].sum() == 1 for rank in np.flatnonzero(holders[e])
    }
    while missing := [e for e in experts if not any(holders[e, rank] for rank in visited)]:
        nodes = {rank // ranks_per_node for rank in visited}
        serves = [sum(bool(holders[e, rank]) for e in missing) for rank in range(num_ranks)]
        near = [rank // ranks_per_node in nodes and serves[rank] > 0 for rank in range(num_ranks)]
        visited.add(max(range(num_ranks), key=lambda rank: (near[rank], serves[rank], turn[rank])))
    return [max(visited & set(np.flatnonzero(holders[e])), key=lambda r: turn[r]) for e in experts]


def random_holders(num_experts, num_ranks, rng):
    held = rng.random((num_experts, num_ranks)) < 0.3
    held[np.arange(num_experts), rng.integers(num_ranks, size=num_experts)] = True
    return held


def test_a_token_takes_the_copy_on_a_rank_that_it_visits_anyway():
    held = holders({0, 1}, {1}, {0}, num_ranks=2)
    assert assign_ranks(np.array([[0, 1], [0, 2], [1, 2]]), held).tolist() == [
        [1, 1],
        [0, 0],
        [1, 0],
    ]


def test_one_rank_that_holds_two_comes_before_two_ranks():
    held = holders({0, 2}, {1, 2}, {3}, num_ranks=4)
    assert assign_ranks(np.array([[0, 1, 2]]), held).tolist() == [[2, 2, 3]]


def test_a_rank_of_a_visited_node_comes_first():
    # Rank 3 would serve both; ranks 0 and 1 are on the node that expert 2 takes the token to.
    held = holders({0, 3}, {1, 3}, {0}, {1, 3}, num_ranks=4)
    assert assign_ranks(np.array([[1, 2, 3]]), held, 2).tolist() == [[1, 0, 1]]
    assert assign_ranks(np.array([[0, 1, 3]]), held, 2).tolist() == [[3, 3, 3]]


def test_tokens_are_spread_over_equal_ranks():
    held = np.ones((8, 4), dtype=bool)
    experts = np.stack([np.zeros(7, dtype=int), np.arange(1, 8)], axis=1)
    assert assign_ranks(experts, held)[:, 0].tolist() == [1, 2, 3, 0, 1, 2, 3]


@given(st.integers(1, 5), st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 3)]), st.integers(0, 10**6))
def test_the_rule_is_that_of_the_plain_reference_in_any_order(top_k, devices, seed):
    num_ranks, num_nodes = devices
    rng = np.random.default_rng(seed)
    sets, _, _ = random_sets(10, top_k, 30, seed)
    held = random_holders(10, num_ranks, rng)
    ranks = assign_ranks(sets, held, num_ranks // num_nodes)
    assert ranks.tolist() == [assign_slowly(row, held, num_ranks // num_nodes) for row in sets]
    shuffled = rng.permuted(np.arange(top_k))
    assert np.array_equal(
        assign_ranks(sets[:, shuffled], held, num_ranks // num_nodes), ranks[:, shuffled]
    )


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_without_replicas_every_expert_is_where_it_is_placed(top_k, num_ranks, seed):
    placement = np.random.default_rng(seed).integers(num_ranks, size=10)
    sets, _, _ = random_sets(10, top_k, 20, seed)
    held = holders_of(placement, NO_EXPERTS, num_ranks)
    assert np.array_equal(assign_ranks(sets, held), placement[sets])


def test_holders_are_the_ranks_own_experts_and_replicas():
    held = holders_of(np.array([1, 0, 1]), np.array([[0], [1]]), 2)
    assert held.tolist() == [[True, True], [True, True], [False, True]]


@pytest.mark.parametrize("replicas", [NO_EXPERTS, np.array([[2], [0]])])
def test_a_layer_plan_tells_the_rank_of_each_choice(replicas):
    placement = np.array([0, 0, 1, 1])
    layer = LayerPlan(num_experts=4, top_k=2, placement=placement, replicas=replicas)
    topology = ClusterTopology(num_ranks=2)
    united = layer.ranks_of(np.array([[1, 2], [0, 3]]), topology)
    assert united.tolist() == ([[0, 0], [1, 1]] if replicas.size else [[0, 1], [0, 1]])
