import json

import pytest

from c2r.errors import ArtifactError, PlanError
from c2r.plans import ClusterTopology
from c2r.results import Measurement, SweepPoint, SweepResult, Target, TransferResult
from tests.results.measurements import measurement_document


def document(**given):
    point = measurement_document(policy="priced", strength=[0.1, 0.2], copies=1.5)
    pair = {"calibration": "a", "evaluation": "b", "baseline": measurement_document()}
    return {
        "request": {"num_ranks": 4, "num_nodes": 2, "seed": 0, "max_load": None},
        "complete": True,
        "seconds": 1.5,
        "spread": [{"policy": "priced", "strength": [0.1, 0.2]}],
        "baseline": measurement_document(),
        "points": [point],
        "transfer": [pair | {"points": [point]}],
    } | given


def test_a_sweep_survives_its_file(tmp_path):
    path = tmp_path / "sweep.json"
    found = SweepResult.from_json(document())
    assert found.to_json() == document()
    found.save(path)
    again = SweepResult.load(path)
    assert (again.baseline, again.points, again.transfer) == (
        found.baseline,
        found.points,
        found.transfer,
    )
    assert again.topology == ClusterTopology(num_ranks=4, num_nodes=2)
    assert again.spread == (SweepPoint(policy="priced", strength=(0.1, 0.2)),)
    assert "transfer" not in SweepResult.from_json(document(transfer=[])).to_json()


def test_plain_top_k_is_among_what_is_picked_from():
    found = SweepResult.from_json(document(points=[measurement_document(loss_increase=0.1)]))
    assert found.pick(Target(max_loss_increase=0.0)) is found.baseline
    pair = TransferResult(
        calibration="a", evaluation="b", baseline=found.baseline, points=found.points
    )
    assert pair.pick(Target(max_loss_increase=0.0)) is found.baseline
    with pytest.raises(PlanError, match="no measured point meets the target"):
        found.pick(Target(copies=1.0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "give another file"),
        (json.dumps([1]), "not written by"),
        (json.dumps({"points": []}), "not written by"),
        (json.dumps(document(complete=False)), "run the same `c2r sweep` to resume it"),
        (json.dumps(document(baseline={})), "lacks or damages"),
        (json.dumps(document(points=3)), "lacks or damages"),
        (json.dumps(document(request={"num_ranks": 4})), "num_nodes"),
        (json.dumps(document(points=[measurement_document(loss=None)])), "loss is None"),
    ],
)
def test_another_file_is_refused(tmp_path, content, words):
    path = tmp_path / "sweep.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=words):
        SweepResult.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="No such file"):
        SweepResult.load(tmp_path / "none.json")


def test_a_measurement_in_a_sweep_has_no_reference():
    assert Measurement.from_json(document()["points"][0]).reference is None
