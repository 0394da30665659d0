import numpy as np
import pytest

from c2r.planning.placement.exact import count_placements, enumerate_placements
from tests.planning.exhaustive import all_placements


@pytest.mark.parametrize(
    ("num_experts", "num_ranks", "number"),
    [(8, 4, 105), (8, 2, 35), (5, 2, 10), (7, 3, 105), (4, 4, 1), (6, 1, 1), (10, 5, 945)],
)
def test_every_placement_is_listed_once(num_experts, num_ranks, number):
    placements = enumerate_placements(num_experts, num_ranks)
    assert len(np.unique(placements, axis=0)) == len(placements) == number
    assert count_placements(num_experts, num_ranks) == number
    sizes = np.stack([np.bincount(row, minlength=num_ranks) for row in placements])
    assert np.ptp(sizes, axis=1).max() <= 1


def test_the_list_is_that_of_the_plain_search():
    plain = {
        frozenset(frozenset(np.flatnonzero(row == rank).tolist()) for rank in range(3))
        for row in all_placements(7, [3, 2, 2])
    }
    listed = {
        frozenset(frozenset(np.flatnonzero(row == rank).tolist()) for rank in range(3))
        for row in enumerate_placements(7, 3)
    }
    assert listed == plain
