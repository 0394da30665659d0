import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.errors import InputError
from c2r.tasks import compare_accuracy
from c2r.tasks.compare import mcnemar


def answers(*, both, ours, theirs, neither):
    """Right or not, for counts of items that both models, one, or none have right."""
    counts = [both, ours, theirs, neither]
    return [
        np.repeat(np.array(right, dtype=bool), counts)
        for right in ([True, True, False, False], [True, False, True, False])
    ]


def test_two_tasks_by_hand():
    first = answers(both=1, ours=2, theirs=0, neither=1)
    second = answers(both=0, ours=1, theirs=2, neither=7)
    found = compare_accuracy(*zip(first, second, strict=True))
    assert (found.num_items, found.num_gained, found.num_lost) == (14, 3, 2)
    assert found.accuracy == pytest.approx((3 / 4 + 1 / 10) / 2)
    assert found.reference_accuracy == pytest.approx((1 / 4 + 2 / 10) / 2)
    assert found.difference == pytest.approx((2 / 4 - 1 / 10) / 2)
    assert found.p_value == 1.0 and not found.is_shown
    assert found.detectable >= 6 / (2 * 10)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (1, 9, 2 * (1 + 10) / 1024),
        (4, 8, 2 * (1 + 12 + 66 + 220 + 495) / 4096),
        (3, 3, 1),
    ],
)
def test_exact_p(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_p_of_many_items_is_that_of_the_normal_distribution():
    """By the continuity-corrected approximation, (|b - c| - 1) / sqrt(b + c)."""
    gained, lost = 2600, 2400
    z = (gained - lost - 1) / math.sqrt(gained + lost)
    assert mcnemar(gained, lost) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


def test_the_interval_is_that_of_paired_differences():
    """By the normal approximation, sqrt((gained + lost) / n - difference^2) / sqrt(n)."""
    ours, theirs = answers(both=700, ours=150, theirs=50, neither=100)
    found = compare_accuracy([ours], [theirs])
    half = 1.96 * math.sqrt(0.2 - 0.1**2) / math.sqrt(1000)
    assert found.interval == pytest.approx((0.1 - half, 0.1 + half), abs=2e-3)
    assert found.detectable == pytest.approx(half, abs=2e-3)
    assert found.is_shown and found.p_value < 1e-9
    unpaired = 1.96 * math.sqrt((0.85 * 0.15 + 0.75 * 0.25) / 1000)
    assert half < 0.8 * unpaired  # what pairing is for


def test_few_items_show_nothing():
    """Four items gained: the bootstrap never resamples a loss, but chance gives 1 in 8."""
    ours, theirs = answers(both=50, ours=4, theirs=0, neither=46)
    found = compare_accuracy([ours], [theirs])
    assert found.interval[0] > 0 and found.p_value == 1 / 8
    assert not found.is_shown and found.detectable == 0.06


counts = st.integers(0, 12)
tables = st.lists(
    st.fixed_dictionaries({"both": counts, "ours": counts, "theirs": counts, "neither": counts})
    .filter(lambda table: sum(table.values()))
    .map(lambda table: answers(**table)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=10)
@given(tables)
def test_turning_it_round_turns_the_signs_round(tasks):
    ours, theirs = zip(*tasks, strict=True)
    there, back = compare_accuracy(ours, theirs), compare_accuracy(theirs, ours)
    assert there.difference == pytest.approx(-back.difference)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert (there.p_value, there.is_shown) == (back.p_value, back.is_shown)
    assert (there.accuracy, there.num_gained) == (back.reference_accuracy, back.num_lost)


@settings(max_examples=10)
@given(tables)
def test_equal_answers_show_no_difference(tasks):
    ours, _ = zip(*tasks, strict=True)
    found = compare_accuracy(ours, ours)
    assert (found.difference, found.interval, found.p_value) == (0, (0, 0), 1)
    assert not found.is_shown and found.detectable > 0


def test_the_seed_draws_the_resamples():
    ours, theirs = answers(both=30, ours=20, theirs=11, neither=9)
    first, again, other = (compare_accuracy([ours], [theirs], seed=s) for s in (0, 0, 1))
    assert first == again and first.interval != other.interval


def test_items_that_cannot_be_compared():
    one, two = np.ones(1, dtype=bool), np.ones(2, dtype=bool)
    for ours, theirs in [([one], [two]), ([], []), ([one[:0]], [one[:0]]), ([one], [one, one])]:
        with pytest.raises(InputError, match="cannot be compared"):
            compare_accuracy(ours, theirs)
