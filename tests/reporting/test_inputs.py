import json
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from c2r.errors import InputError
from c2r.planning import make_plan
from c2r.reporting import read_inputs
from c2r.reporting.sections.benchmark import show_training
from tests.reporting.profiles import benchmark_document, clustered_profile, sweep_document

ONE = {"model": "one", "model_fingerprint": {"structure": "a", "weights": "b"}}
OTHER = {"model": "other", "model_fingerprint": {"structure": "a", "weights": "c"}}


@pytest.fixture
def write(tmp_path):
    """Writes a value under a name that tells nothing, and gives the path."""

    def write(value, name="x"):
        path = tmp_path / name
        if hasattr(value, "save"):
            value.save(path)
        else:
            path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_kinds_are_told_by_content(write):
    profile = clustered_profile(**ONE)
    plan = make_plan(profile, num_ranks=4)
    state = {"log_history": [{"step": 1, "loss": 2.0}], "global_step": 1}
    values = [profile, plan, sweep_document(), benchmark_document(), state]
    found = read_inputs([write(value, f"{i}.bin") for i, value in enumerate(values)])
    kinds = [source.kind for source in found.sources]
    assert kinds == ["profile", "plan", "sweep", "benchmark", "training"]
    assert found.plan.fingerprint == plan.fingerprint and found.sweep.to_json() == sweep_document()
    assert (found.model_name, found.topology.num_ranks) == ("one", 4)
    assert np.array_equal(found.profile.layers[0].load, profile.layers[0].load)


def test_a_benchmark_names_the_model_where_nothing_else_does(write):
    assert read_inputs([write(benchmark_document())]).model_name == "tiny"
    assert read_inputs([write(sweep_document())]).model_name == "a model without a name"


def refused(words, *paths):
    with pytest.raises(InputError) as caught:
        read_inputs(paths)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_files_of_mixed_models(write):
    ours, theirs = clustered_profile(**ONE), clustered_profile(**OTHER)
    paths = write(ours, "p"), write(make_plan(theirs, num_ranks=4), "q")
    refused(["p is of one (", "q of other (", "a/b", "a/c", "one model"], *paths)
    sweep = sweep_document() | {"request": {**OTHER, "num_ranks": 4, "num_nodes": 1}}
    refused(["of other (fingerprint a/c)"], paths[0], write(sweep, "s"))


def test_files_of_different_shape_without_fingerprints(write):
    plan = make_plan(clustered_profile(num_layers=2), num_ranks=4)
    words = ["3 layers of 16 experts with k = 4", "2 layers of 16 experts"]
    refused(words, write(clustered_profile(), "p"), write(plan, "q"))


def test_files_for_different_ranks(write):
    plan = make_plan(clustered_profile(), num_ranks=4)
    sweep = sweep_document() | {"request": {"num_ranks": 8, "num_nodes": 1}}
    refused(["for 4 ranks", "for 8"], write(plan, "q"), write(sweep, "s"))


def test_two_of_a_kind(write):
    paths = write(clustered_profile(), "a"), write(clustered_profile(), "b")
    refused(["a and ", "b are both a profile"], *paths)


def test_an_empty_profile(write):
    profile = clustered_profile()
    none = np.zeros_like(profile.layers[0].load)
    empty = replace(profile, layers=(replace(profile.layers[0], load=none), *profile.layers[1:]))
    refused(["x holds no tokens in 1 of 3 layers"], write(empty))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"answer": 42}, ["JSON of a kind", "c2r sweep"]),
        ([1, 2], ["no object"]),
        ("loss,copies\n", ["neither a file of c2r nor JSON"]),
        ("", ["neither"]),
        ('{"points": NaN, "baseline": 1}', ["NaN is not a number"]),
        (sweep_document() | {"points": []}, ["has no points"]),
        ({"points": [], "baseline": {}}, ["not written by", "c2r sweep"]),
        (sweep_document() | {"points": 3}, ["lacks or damages"]),
        (sweep_document() | {"complete": False}, ["not a finished sweep"]),
        (sweep_document(loss=None), ["loss is None"]),
        (sweep_document() | {"points": [{"policy": "c2r"}]}, ["lacks or damages"]),
        (sweep_document(copies=0), ["copies is 0"]),
        (sweep_document(copies_in_order="2"), ["no number"]),
        (sweep_document(loss_increase_interval=[1]), ["lacks or damages"]),
        ({"benchmark": "b", "cases": 3}, ["has no cases"]),
        ({"benchmark": "b", "cases": [{"name": "n"}]}, ["lacks median, lower, upper"]),
        ({"log_history": [{"step": 1}]}, ["logs no loss and no eval_loss"]),
        ({"log_history": [{"step": 1, "loss": "low"}]}, ["logs a loss that is no number"]),
        ({"log_history": [{"loss": 1.0}]}, ["lacks step in log_history 0"]),
    ],
)
def test_files_that_cannot_be_shown(write, content, words):
    refused(words, write(content))


def test_a_profile_is_read_layer_by_layer(write):
    """Its file, a copy of all arrays and the profile were in memory at once."""
    profile = clustered_profile(num_layers=24, num_experts=128, num_tokens=500)
    path = write(profile, "large")
    tracemalloc.start()
    try:
        read_inputs([path])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    arrays = profile.to_artifact().arrays.values()
    assert most < 1.4 * sum(array.nbytes for array in arrays)


def test_missing_foreign_and_truncated_files(write, tmp_path):
    refused(["No such file", "check the path"], tmp_path / "none")
    refused(["give a profile"])
    save_file({"a": np.zeros(2)}, tmp_path / "foreign")
    refused(["c2r did not write"], tmp_path / "foreign")
    content = write(clustered_profile(), "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[:1000])
    refused(["truncated"], tmp_path / "cut")


def test_a_loss_that_was_not_a_number_is_a_gap(write):
    """As transformers writes it: NaN, which is no JSON."""
    text = '{"log_history": [{"step": 1, "loss": 3.5}, {"step": 2, "loss": NaN}]}'
    log = read_inputs([write(text)]).trainings[0]["log_history"]
    assert [row["loss"] for row in log] == [3.5, None]
    (losses,) = show_training(0, {"log_history": log}).charts
    (series,) = losses.series
    assert series.y[0] == 3.5 and math.isnan(series.y[1])
    refused(["logs no loss"], write('{"log_history": [{"step": 1, "loss": NaN}]}'))


def test_a_byte_order_mark_before_json_is_dropped(write):
    text = '\ufeff{"log_history": [{"step": 1, "loss": 3.5}]}'
    assert read_inputs([write(text)]).trainings[0]["log_history"][0]["loss"] == 3.5
