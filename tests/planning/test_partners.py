import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2r.planning import order_partners


def test_partners_come_by_descending_count():
    counts = np.array([[0, 2, 5], [2, 0, 1], [5, 1, 0]])
    assert order_partners(counts).tolist() == [[2, 1], [0, 2], [0, 1]]


def test_ties_go_to_the_lower_id_and_zero_counts_come_last():
    counts = np.array([[0, 0, 3, 3], [0, 0, 0, 0], [3, 0, 0, 7], [3, 0, 7, 0]])
    assert order_partners(counts).tolist() == [[2, 3, 1], [0, 2, 3], [3, 0, 1], [2, 0, 1]]


@pytest.mark.parametrize("diagonal", [0, -1, 10**12])
def test_no_expert_is_its_own_partner_whatever_the_diagonal_holds(diagonal):
    counts = np.full((5, 5), 3)
    np.fill_diagonal(counts, diagonal)
    partners = order_partners(counts)
    assert not (partners == np.arange(5)[:, None]).any()
    assert (np.sort(partners, axis=1) == [[j for j in range(5) if j != i] for i in range(5)]).all()


def test_a_single_expert_has_no_partners():
    assert order_partners(np.zeros((1, 1), dtype=np.int64)).shape == (1, 0)


@given(st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_counts_never_rise_along_a_row(num_experts, seed):
    counts = np.random.default_rng(seed).integers(0, 5, (num_experts, num_experts))
    partners = order_partners(counts)
    sorted_counts = np.take_along_axis(counts, partners, axis=1)
    assert (np.diff(sorted_counts, axis=1) <= 0).all()
    ties = np.diff(sorted_counts, axis=1) == 0
    assert (np.diff(partners, axis=1)[ties] > 0).all()
