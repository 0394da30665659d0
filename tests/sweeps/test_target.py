import json

import pytest

from c2r.errors import ArtifactError, PlanError, PlanMismatchError
from c2r.planning import make_plan, with_policy
from c2r.plans import ClusterTopology
from c2r.profiling import CollaborationProfile
from c2r.sweeps import Target, plan_from_sweep, read_sweep, write_sweep
from tests.planning.profiles import random_profile


def point(policy, strength, loss, copies, load=1.2):
    return {
        "policy": policy,
        "strength": strength,
        "loss_increase": loss,
        "copies": copies,
        "rank_load_max_over_mean": load,
    }


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


PROFILE = random_profile(2, 8, 2)


def document(**request):
    placed = make_plan(PROFILE, num_ranks=4, policy="top_k")
    made = with_policy(placed, PROFILE, "budgeted", 0.1)
    baseline = point("top_k", 0.0, 0.0, 2.0) | {"plan_fingerprint": placed.fingerprint}
    del baseline["strength"], baseline["loss_increase"]
    return {
        "request": {"num_ranks": 4, "num_nodes": 1, "seed": 0, "max_load": None, **request},
        "complete": True,
        "baseline": baseline,
        "points": [point("budgeted", 0.1, 0.002, 1.5) | {"plan_fingerprint": made.fingerprint}],
    }


def test_the_plan_carries_its_expected_figures():
    topology = ClusterTopology(num_ranks=4)
    plan = plan_from_sweep(document(), PROFILE, topology, Target(copies=1.6))
    assert [(layer.policy, layer.strength) for layer in plan.layers] == [("budgeted", 0.1)] * 2
    assert plan.provenance["expected"]["copies"] == 1.5
    assert plan.provenance["target"]["copies"] == 1.6
    plain = plan_from_sweep(document(), PROFILE, topology, Target(max_loss_increase=0.0))
    assert plain.layers[0].policy == "top_k"


def test_other_devices_and_other_profiles_are_refused():
    target = Target(copies=1.6)
    with pytest.raises(PlanMismatchError, match="4 ranks on 1 nodes, not of 2 on 1"):
        plan_from_sweep(document(), PROFILE, ClusterTopology(num_ranks=2), target)
    other = random_profile(3, 8, 2).layers[1:]
    with pytest.raises(PlanMismatchError, match="planned by another profile"):
        plan_from_sweep(
            document(), CollaborationProfile(layers=other), ClusterTopology(num_ranks=4), target
        )


def test_files(tmp_path):
    path = tmp_path / "sweep.json"
    write_sweep(path, document())
    assert read_sweep(path) == document()
    with pytest.raises(ArtifactError, match="not a finished sweep"):
        read_sweep(tmp_path / "none.json")
    write_sweep(path, {**document(), "complete": False})
    with pytest.raises(ArtifactError, match="run the same `c2r sweep` to resume it"):
        read_sweep(path)
    for content in ("{", json.dumps([1]), json.dumps({"points": []})):
        path.write_text(content)
        with pytest.raises(ArtifactError, match="another file"):
            read_sweep(path)
