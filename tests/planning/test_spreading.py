import itertools

import numpy as np
import pytest

from c2r.errors import PlanError
from c2r.planning import LayerSensitivity, spread_strengths


def layer(costs, copies, strengths=None):
    strengths = np.arange(len(costs)) if strengths is None else strengths
    return LayerSensitivity(
        strengths=np.array(strengths, dtype=float), cost=np.array(costs), copies=np.array(copies)
    )


def test_by_hand():
    """The second layer minds less, so it gives its copies first."""
    layers = [layer([0.0, 3.0, 8.0], [4.0, 3.0, 2.0]), layer([0.0, 1.0, 4.0], [4.0, 3.0, 2.0])]
    assert spread_strengths(layers, 4.0) == [0, 0]
    assert spread_strengths(layers, 3.5) == [0, 1]
    assert spread_strengths(layers, 2.5) == [1, 2]
    assert spread_strengths(layers, 2.0) == [2, 2]


def test_points_that_others_beat_are_not_taken():
    layers = [layer([0.0, 5.0, 1.0, 9.0], [4.0, 3.5, 3.0, 3.2])]
    assert spread_strengths(layers, 3.4) == [2]


def test_a_strength_that_costs_nothing_is_taken_at_once():
    assert spread_strengths([layer([0.0, -0.1], [4.0, 3.0])], 4.0) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_sends_no_more_at_less_cost(seed):
    """At the copies that it comes to; a budget between two hull points may be overshot."""
    rng = np.random.default_rng(seed)
    layers = [
        layer(np.sort(rng.random(4)) * rng.uniform(0.2, 3), -np.sort(-rng.uniform(1, 4, 4)))
        for _ in range(3)
    ]
    chosen = [int(s) for s in spread_strengths(layers, 2.4)]
    cost = sum(entry.cost[i] for entry, i in zip(layers, chosen, strict=True))
    copies = sum(entry.copies[i] for entry, i in zip(layers, chosen, strict=True))
    assert copies / 3 <= 2.4
    for others in itertools.product(range(4), repeat=3):
        if sum(entry.copies[i] for entry, i in zip(layers, others, strict=True)) <= copies:
            assert sum(e.cost[i] for e, i in zip(layers, others, strict=True)) >= cost - 1e-12


def test_a_budget_out_of_reach_says_what_is_possible():
    with pytest.raises(PlanError, match=r"1\.500 copies .* fewer than the 2\.000"):
        spread_strengths([layer([0.0, 1.0], [4.0, 2.0])], 1.5)
