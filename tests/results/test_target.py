import pytest

from c2r.errors import PlanError
from c2r.results import Measurement, Target
from tests.results.measurements import measurement_document


def point(policy, strength, loss, copies, load=1.2):
    return Measurement.from_json(
        measurement_document(
            policy=policy,
            strength=strength,
            loss_increase=loss,
            copies=copies,
            rank_load_max_over_mean=load,
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
