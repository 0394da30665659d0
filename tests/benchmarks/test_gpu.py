"""The GPU benchmarks run through on a CPU, where they claim nothing."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *options):
    return subprocess.run(
        [sys.executable, BENCHMARKS / script, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def layer():
    done = run("gpu_layer.py", "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers_of_transformers_and_ours_run_and_the_others_are_named(layer):
    result = json.loads(layer.splitlines()[-1])
    assert result["claims_nothing"] and len(result["rows"]) == 2
    for case in result["rows"]:
        assert {"grouped_mm", "eager", "c2r"} <= set(case["forward and backward"]["layers"])
        named = set(case["missing"]) | set(case["forward"]["layers"])
        assert named == {"grouped_mm", "eager", "c2r", "sonicmoe", "megablocks", "scattermoe"}
        assert case["routing"].startswith("made up: ")
    assert "routing made up" in layer


def test_every_operation_is_measured():
    done = run("gpu_ops.py", "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["claims_nothing"]
    found = {kind: {} for kind in ("rows", "index", "choices")}
    for row in result["rows"]:
        found[row["kind"]][row["operation"]] = row
    assert set(found["rows"]) >= {"device copy", "copy_rows", "sum_copies", "sum_copies_backward"}
    assert set(found["index"]) == {"sort_by_expert", "one_row_per_destination", "count_pairs"}
    assert found["rows"]["device copy"]["share_of_copy"]["median"] == 1
    assert len(found["choices"]) == 7 and result["routing"].startswith("made up: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from gpu import add_arguments, device_of

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit) as stopped:
        device_of(parser.parse_args([]))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--device cpu --tiny" in line
