import pytest

from c2r.errors import PlanMismatchError
from c2r.planning import make_plan, plan_from_sweep, with_policy
from c2r.plans import ClusterTopology
from c2r.profiling import CollaborationProfile
from c2r.results import Measurement, SweepResult, Target
from tests.planning.profiles import random_profile
from tests.results.measurements import measurement_document

PROFILE = random_profile(2, 8, 2)


def sweep():
    placed = make_plan(PROFILE, num_ranks=4, policy="top_k")
    made = with_policy(placed, PROFILE, "budgeted", 0.1)
    figures = {"loss_increase": 0.002, "copies": 1.5}
    point = measurement_document(
        policy="budgeted", strength=0.1, plan_fingerprint=made.fingerprint, **figures
    )
    return SweepResult(
        request={"num_ranks": 4, "num_nodes": 1, "seed": 0, "max_load": None},
        baseline=Measurement.from_json(measurement_document(plan_fingerprint=placed.fingerprint)),
        points=(Measurement.from_json(point),),
    )


def test_the_plan_carries_its_expected_figures():
    topology = ClusterTopology(num_ranks=4)
    plan = plan_from_sweep(sweep(), PROFILE, topology, Target(copies=1.6))
    assert [(layer.policy, layer.strength) for layer in plan.layers] == [("budgeted", 0.1)] * 2
    assert plan.provenance["expected"]["copies"] == 1.5
    assert plan.provenance["target"]["copies"] == 1.6
    plain = plan_from_sweep(sweep(), PROFILE, topology, Target(max_loss_increase=0.0))
    assert plain.layers[0].policy == "top_k"


def test_other_devices_and_other_profiles_are_refused():
    target = Target(copies=1.6)
    with pytest.raises(PlanMismatchError, match="4 ranks on 1 nodes, not of 2 on 1"):
        plan_from_sweep(sweep(), PROFILE, ClusterTopology(num_ranks=2), target)
    other = CollaborationProfile(layers=random_profile(3, 8, 2).layers[1:])
    with pytest.raises(PlanMismatchError, match="planned by another profile"):
        plan_from_sweep(sweep(), other, ClusterTopology(num_ranks=4), target)
