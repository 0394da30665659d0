import numpy as np
import pytest

from c2r.planning.placement.gains import SwapGains
from c2r.plans import count_copies
from tests.planning.instances import random_sets


def test_a_swap_that_brings_a_pair_together():
    # {0, 2} is apart and {1, 2} too; swapping 1 and 2 unites {0, 2}, leaves {1, 2} apart.
    gains = SwapGains(np.array([[0, 2], [1, 2]]), np.array([5, 1]), np.array([0, 0, 1, 1]), 2)
    assert gains.cost == 12
    assert gains.changes()[1, 2] == -5
    # Swapping 0 and 3 changes no distance of 2 to 0: both pairs stay as they are or unite.
    assert gains.changes()[0, 3] == -5
    assert gains.changes()[0, 1] == 0


@pytest.mark.parametrize(("top_k", "num_labels"), [(1, 3), (2, 4), (3, 2), (4, 5), (8, 4)])
def test_every_change_is_exact_after_every_swap(top_k, num_labels):
    sets, counts, _ = random_sets(10, top_k, 60, seed=top_k)
    weights = counts + np.random.default_rng(0).random(len(counts))
    rng = np.random.default_rng(1)
    labels = rng.integers(num_labels, size=12)  # Experts 10 and 11 are in no set.
    gains = SwapGains(sets, weights, labels, num_labels)
    for _ in range(12):
        cost = weights @ count_copies(sets, gains.labels)
        assert gains.cost == pytest.approx(cost)
        changes = gains.changes()
        for first in range(12):
            for second in range(12):
                swapped = gains.labels.copy()
                swapped[[first, second]] = swapped[[second, first]]
                expected = weights @ count_copies(sets, swapped) - cost
                assert changes[first, second] == pytest.approx(expected, abs=1e-9)
        gains.swap(*rng.choice(12, size=2, replace=False))
