import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.profiling.sets import RoutingSets, distinct_rows


def rng(seed=0):
    return np.random.default_rng(seed)


def draw_ids(tokens, num_experts, k, seed):
    return rng(seed).random((tokens, num_experts)).argsort(1)[:, :k]


def test_counting_by_hand():
    ids = np.array([[2, 0], [0, 2], [1, 2]])
    sets = RoutingSets.count(ids, rng(), capacity=10)
    assert sets.experts.tolist() == [[0, 2], [1, 2]] and sets.counts.tolist() == [2, 1]
    assert sets.is_exact and sets.num_tokens == 3


@pytest.mark.parametrize(("num_experts", "k"), [(4, 2), (60, 4), (256, 8), (512, 10), (3, 1)])
def test_rows_are_counted_whatever_their_width(num_experts, k):
    rows = np.sort(draw_ids(500, num_experts, k, 1), axis=1)
    distinct, counts = distinct_rows(rows)
    expected, expected_counts = np.unique(rows, axis=0, return_counts=True)
    assert np.array_equal(distinct, expected) and np.array_equal(counts, expected_counts)


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_merging_parts_is_counting_the_whole(sizes, seed):
    parts = [draw_ids(size, 6, 3, seed + i) for i, size in enumerate(sizes)]
    merged = RoutingSets.empty(3)
    for part in parts:
        merged = merged.merge(RoutingSets.count(part, rng(), 1000), rng())
    whole = RoutingSets.count(np.concatenate(parts), rng(), 1000)
    assert np.array_equal(merged.experts, whole.experts)
    assert np.array_equal(merged.counts, whole.counts)
    assert merged.num_tokens == sum(sizes)


def test_beyond_the_cap_a_sample_of_known_size_stays():
    sets = RoutingSets.empty(3, capacity=50)
    for seed in range(5):
        part = draw_ids(400, 12, 3, seed)
        sets = sets.merge(RoutingSets.count(part, rng(seed), 50), rng(seed))
    assert not sets.is_exact
    assert sets.sample_size == 50 and sets.num_tokens == 2000
    distinct, counts = sets.distinct()
    assert counts.sum() == 50 and len(np.unique(distinct, axis=0)) == len(distinct)


def test_the_sample_is_uniform_over_tokens():
    """Early exact counts, a late batch and a merged profile are sampled at the same rate."""
    kept = np.zeros(3)
    for seed in range(200):
        generator = rng(seed)
        sets = RoutingSets.empty(2, capacity=30)
        for third in range(3):  # the tokens of each third use experts of their own
            ids = draw_ids(100, 9, 2, 1000 * third + seed) + 9 * third
            sets = sets.merge(RoutingSets.count(ids, generator, 30), generator)
        experts, counts = sets.distinct()
        kept += np.bincount(experts[:, 0] // 9, weights=counts, minlength=3)
    # 6,000 kept tokens, a third each: one standard deviation is 37.
    assert np.abs(kept - 2000).max() < 4 * 37
