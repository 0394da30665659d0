import pytest

from c2r.errors import PlanError
from c2r.results import Measurement, Target
from tests.results.measurements import measurement_document


def point(policy, strength, loss, copies, load=1.2, **times):
    return Measurement.from_json(
        measurement_document(
            policy=policy,
            strength=strength,
            loss_increase=loss,
            copies=copies,
            rank_load_max_over_mean=load,
            **times,
        )
    )


POINTS = [
    point("top_k", 0.0, 0.0, 2.0),
    point("budgeted", 0.05, 0.001, 1.7),
    point("budgeted", 0.1, 0.004, 1.5, 1.05),
    point("c2r", 4, 0.05, 1.6),
]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (Target(max_loss_increase=0.003), 1),
        (Target(max_loss_increase=0.01), 2),
        (Target(max_loss_increase=0.0), 0),
        (Target(copies=1.6), 2),
        (Target(copies=1.8), 1),
        (Target(copies=1.6, max_load=1.1), 2),
        (Target(copies=3.0), 0),
    ],
)
def test_picks(target, index):
    assert target.pick(POINTS) is POINTS[index]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(copies=1.2), r"fewest copies 1\.500 at \+0\.40 % \(budgeted 0\.1\)"),
        (Target(max_loss_increase=-0.1), r"least loss is \+0\.00 % at 2\.000 copies \(top_k"),
        (Target(max_loss_increase=0.002, copies=1.6), "no measured point meets the target"),
        (Target(copies=1.8, max_load=1.01), r"within 1\.01; the best has 1\.050"),
    ],
)
def test_a_target_out_of_reach_says_the_best_possible(target, message):
    with pytest.raises(PlanError, match=message):
        target.pick(POINTS)


TIMED = [
    point("top_k", 0.0, 0.0, 2.0, layer_time=3.0, step_time=40.0),
    point("priced", 0.03, 0.001, 1.7, layer_time=2.5, step_time=36.0),
    point("priced", 0.1, 0.004, 1.4, layer_time=2.6, step_time=37.0),
]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (Target(max_loss_increase=0.01), 1),
        (Target(max_loss_increase=0.0), 0),
        (Target(max_time=2.8), 1),
        (Target(max_time=3.5), 0),
        (Target(max_time=2.8, copies=1.5), 2),
    ],
)
def test_picks_by_time_where_it_is_known(target, index):
    assert target.pick(TIMED) is TIMED[index]


def test_a_time_out_of_reach_or_unknown_is_told():
    with pytest.raises(PlanError, match=r"the least time 2\.500 ms a layer \(priced 0\.03\)"):
        Target(max_time=1.0).pick(TIMED)
    with pytest.raises(PlanError, match="does not tell times"):
        Target(max_time=1.0).pick(POINTS)


def test_times_are_kept_in_files():
    assert Measurement.from_json(TIMED[1].to_json()) == TIMED[1]
    assert "layer_time" not in POINTS[0].to_json()
