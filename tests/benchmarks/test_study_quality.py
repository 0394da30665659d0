"""The study of quality: whole runs, in pieces, give one table."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "study_quality.py"


def study(folder, *options):
    command = [sys.executable, str(SCRIPT), "--out", str(folder), "--scale", "smoke"]
    command += ["--seeds", "0", "1", "--modes", "router", "--tuned-cases", "priced=0.1"]
    command += ["--cases", "priced=0.1", "priced=0.1@again", "top_k@replicas", *options]
    one = os.environ | {"OMP_NUM_THREADS": "1"}  # the other core is another test's
    return subprocess.run(command, env=one, capture_output=True, text=True, check=True)


def test_a_study_cut_short_goes_on_to_the_same_rows_as_its_runs(tmp_path):
    cut = study(tmp_path, "--minutes", "0.05")  # less than it takes to load
    assert "out of time" in cut.stderr
    whole = study(tmp_path)
    rows = {(r["mode"], r["case"]): r for r in json.loads(whole.stdout.splitlines()[-1])["rows"]}
    assert set(rows) == {
        (mode, case) for mode in ("none", "router") for case in ("control", "priced 0.1")
    } | {("none", case) for case in ("in order", "priced 0.1, again", "control, replicas")}
    tuned = rows["router", "priced 0.1"]
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    losses = {
        (entry["run"]["policy"], entry["run"]["seed"]): entry["loss"]
        for entry in runs
        if entry["run"]["mode"] == "router"
    }
    ratios = [losses["priced", seed] / losses["top_k", seed] - 1 for seed in (0, 1)]
    assert tuned["seeds"] == 2
    assert abs(tuned["over_control"] - sum(ratios) / 2) < 1e-12
    low, high = tuned["interval"]
    assert low <= tuned["over_control"] <= high
    assert tuned["of_contiguous"] < 0.6
    held = rows["none", "control, replicas"]
    assert held["copies"] < rows["none", "control"]["copies"]
    assert held["loss"] == rows["none", "control"]["loss"]
    assert not (tmp_path / "tuning").exists() or not any((tmp_path / "tuning").iterdir())
