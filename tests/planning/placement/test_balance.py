import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2r.planning.placement.balance import canonical_placement, pack_by_load, repair_sizes
from c2r.planning.placement.hypergraph import pair_weights
from c2r.plans import contiguous_placement, rank_loads


def test_contiguous_keeps_order_and_gives_the_first_ranks_the_rest():
    assert contiguous_placement(5, 2).tolist() == [0, 0, 0, 1, 1]
    assert contiguous_placement(8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert contiguous_placement(3, 3).tolist() == [0, 1, 2]


def test_canonical_ranks_are_numbered_by_their_lowest_expert():
    assert canonical_placement(np.array([1, 0, 1, 0]), 2).tolist() == [0, 1, 0, 1]
    assert canonical_placement(np.array([2, 2, 0, 1]), 3).tolist() == [0, 0, 1, 2]


def test_canonical_nodes_come_first_then_the_ranks_within_them():
    # Ranks 0, 1 are node 0; ranks 2, 3 node 1. Expert 0 is on node 1, which becomes node 0.
    placement = np.array([3, 0, 2, 1, 3, 0, 2, 1])
    assert canonical_placement(placement, 4, 2).tolist() == [0, 2, 1, 3, 0, 2, 1, 3]


@given(st.integers(0, 10**6), st.sampled_from([(1, 5), (2, 4), (2, 6), (3, 6)]))
def test_canonical_placement_keeps_who_shares_a_rank_and_a_node(seed, nodes_and_ranks):
    num_nodes, num_ranks = nodes_and_ranks
    placement = np.random.default_rng(seed).permutation(contiguous_placement(17, num_ranks))
    renamed = canonical_placement(placement, num_ranks, num_nodes)
    for before, after in [
        (placement, renamed),
        (placement // (num_ranks // num_nodes), renamed // (num_ranks // num_nodes)),
    ]:
        assert ((before[:, None] == before) == (after[:, None] == after)).all()


def test_repair_moves_the_expert_that_loses_least():
    sets = np.array([[0, 1], [1, 2], [2, 3]])
    affinity = pair_weights(sets, np.array([9, 1, 5]), 4)
    assert repair_sizes(np.array([0, 0, 0, 1]), 2, affinity).tolist() == [0, 0, 1, 1]


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 10**6))
def test_repaired_sizes_differ_by_one_at_most(num_experts, num_ranks, seed):
    rng = np.random.default_rng(seed)
    placement = rng.integers(num_ranks, size=num_experts)
    repaired = repair_sizes(placement, num_ranks, rng.random((num_experts, num_experts)))
    sizes = np.bincount(repaired, minlength=num_ranks)
    assert sizes.max() - sizes.min() <= 1


def test_packing_levels_the_loads():
    load = np.array([8, 7, 6, 5, 4, 3, 2, 1])
    packed = pack_by_load(load, 4, 9.0, np.random.default_rng(0))
    assert rank_loads(load, packed, 4).tolist() == [9, 9, 9, 9]
    assert np.bincount(packed).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_packing_is_even_in_size(num_ranks):
    load = np.random.default_rng(0).exponential(size=17)
    packed = pack_by_load(load, num_ranks, 0.0, np.random.default_rng(0))
    assert np.ptp(np.bincount(packed, minlength=num_ranks)) <= 1
