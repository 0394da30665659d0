import math

import pytest

from c2r.reporting.axes import Axis


def test_values_stand_between_0_and_100():
    axis = Axis.over((2.0, 3.0))
    assert 0 < axis.place(2.0) < axis.place(2.5) < axis.place(3.0) < 100
    assert axis.place(2.5) == pytest.approx(50)


def test_an_axis_of_amounts_begins_at_0_where_that_leaves_little_empty():
    lows = [Axis.over((low, 3.0), is_amount=True).low for low in (-1.0, 1.0, 2.0)]
    assert lows[0] < -1 and lows[1] == 0 < lows[2]
    assert Axis.over((1.0, 3.0)).low > 0


def test_ticks_are_round_and_within():
    assert Axis.over((0.0, 4.2), is_amount=True).ticks() == pytest.approx([0, 1, 2, 3, 4])
    assert Axis.over((0.11, 0.19)).ticks() == pytest.approx(
        [0.02 * n for n in range(6, 10)], abs=0.02
    )
    assert Axis.over(range(3), is_whole=True).ticks() == [0, 1, 2]
    assert Axis.over(range(100), is_whole=True).ticks() == [20 * n for n in range(5)]


def test_beyond_its_linear_part_an_axis_is_logarithmic():
    axis = Axis.over((-0.1, 20.0), linear_to=0.25)
    places = [axis.place(value) for value in (0.0, 0.1, 0.2, 1.0, 10.0)]
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])
    assert axis.place(2.5) - axis.place(0.25) == pytest.approx(axis.place(25) - axis.place(2.5))
    assert axis.ticks() == [-0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]


@pytest.mark.parametrize(
    "values", [(), (math.nan,), (1.0,), (0.0, 0.0), (1e300, -1e300), (5e-324,)]
)
def test_every_value_has_a_place(values):
    axis = Axis.over(values)
    assert len(axis.ticks()) < 20
    assert all(0 <= axis.place(value) <= 100 for value in values if math.isfinite(value))
