import json

import pytest

from c2r.errors import ArtifactError, InputError
from c2r.results import Measurement
from tests.results.measurements import measurement_document

REFERENCE = measurement_document()
DOCUMENT = measurement_document(
    policy="priced", strength=[0.1, 0.2], loss_increase_interval=[-0.1, 0.1], reference=REFERENCE
)


def test_a_measurement_survives_json():
    found = Measurement.from_json(json.loads(json.dumps(DOCUMENT)))
    assert found.strength == (0.1, 0.2) and found.loss_increase_interval == (-0.1, 0.1)
    assert found.reference == Measurement.from_json(REFERENCE)
    assert found.to_json() == DOCUMENT
    assert "reference" not in found.reference.to_json()


def test_a_measurement_survives_its_file(tmp_path):
    found = Measurement.from_json(DOCUMENT)
    found.save(tmp_path / "m.json")
    assert Measurement.load(tmp_path / "m.json") == found
    with pytest.raises(InputError, match="choose a folder"):
        found.save(tmp_path / "none" / "m.json")


def test_figures_by_the_names_of_earlier_versions_are_read():
    document = measurement_document()
    document["copies_contiguous"] = document.pop("copies_in_order")
    assert Measurement.from_json(document) == Measurement.from_json(measurement_document())


def test_entries_that_are_no_attribute_are_passed_over():
    assert Measurement.from_json({**DOCUMENT, "expected": None}) == Measurement.from_json(DOCUMENT)


@pytest.mark.parametrize("name", REFERENCE)
def test_a_file_that_lacks_an_attribute_is_refused(tmp_path, name):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({key: value for key, value in REFERENCE.items() if key != name}))
    with pytest.raises(ArtifactError, match=rf"m\.json lacks or damages .*{name}"):
        Measurement.load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no[t]? .*JSON"),
        ('{"loss": NaN}', "NaN is not a number"),
        ("[1]", "lacks or damages"),
        (json.dumps(measurement_document(loss="2")), "loss is '2', no number"),
        (json.dumps(measurement_document(kl=True)), "kl is True, no number"),
        (json.dumps(measurement_document(copies=0)), "copies is 0"),
        (json.dumps(measurement_document(loss_increase_interval=[1])), "lacks or damages"),
        (json.dumps(measurement_document(strength="much")), "much"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        Measurement.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="No such file"):
        Measurement.load(tmp_path / "none.json")
