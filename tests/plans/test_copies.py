import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2r.plans import (
    ClusterTopology,
    count_copies,
    count_visits,
    load_max_over_mean,
    mean_copies,
    mean_node_copies,
    rank_loads,
    remote_share,
    row_loads,
)
from tests.planning.exhaustive import count_copies_slowly
from tests.planning.instances import random_sets

SETS = np.array([[0, 1], [1, 2], [0, 3]])
COUNTS = np.array([3, 1, 4])
PLACEMENT = np.array([0, 0, 1, 2])


def test_copies_are_the_distinct_ranks_of_a_set():
    assert count_copies(SETS, PLACEMENT).tolist() == [1, 2, 2]
    assert mean_copies(SETS, COUNTS, PLACEMENT) == pytest.approx((3 * 1 + 1 * 2 + 4 * 2) / 8)


def test_node_copies_are_the_distinct_nodes_of_a_set():
    topology = ClusterTopology(num_ranks=4, num_nodes=2)
    assert mean_node_copies(SETS, COUNTS, PLACEMENT, topology) == pytest.approx((3 + 1 + 8) / 8)


def test_remote_copies_are_what_random_home_ranks_give():
    sets, counts, _ = random_sets(12, 4, 300, seed=1)
    placement = np.arange(12) % 4
    homes = np.arange(4)
    visited = (placement[sets][:, :, None] == np.arange(4)).any(1)
    remote = np.mean([(counts @ np.delete(visited, home, 1).sum(1)) for home in homes])
    copies = mean_copies(sets, counts, placement) * remote_share(4)
    assert copies == pytest.approx(remote / counts.sum())
    assert remote_share(1) == 0


def test_rank_loads_add_up_the_experts_of_each_rank():
    loads = rank_loads(np.array([5, 1, 2, 8]), PLACEMENT, 4)
    assert loads.tolist() == [6, 2, 8, 0]
    assert load_max_over_mean(loads) == 2.0
    assert row_loads(PLACEMENT[SETS], COUNTS, 4).tolist() == [3 + 3 + 1 + 4, 1, 4, 0]
    assert load_max_over_mean(np.zeros(3)) == 1.0


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_copies_lie_between_one_and_the_lesser_of_k_and_ranks(top_k, num_ranks, seed):
    sets, counts, _ = random_sets(10, top_k, 20, seed)
    placement = np.random.default_rng(seed).integers(num_ranks, size=10)
    copies = count_copies(sets, placement)
    assert copies.tolist() == count_copies_slowly(sets, placement)
    assert copies.min() >= 1
    assert copies.max() <= min(top_k, num_ranks)
    renamed = np.random.default_rng(seed).permutation(num_ranks)[placement]
    assert mean_copies(sets, counts, renamed) == mean_copies(sets, counts, placement)


def test_visits_are_the_tokens_with_any_expert_on_a_rank():
    ranks = np.array([[0, 0], [0, 1]])
    assert count_visits(ranks, np.array([3, 1]), 3).tolist() == [4, 1, 0]
    assert count_visits(ranks[:, ::-1], np.array([3.0, 1.0]), 2).tolist() == [4, 1]
