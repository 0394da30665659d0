"""`c2r optimize` as a user runs it."""

import json
import shlex
from dataclasses import replace

import pytest

from c2r.cli import run_command
from c2r.plans import Plan
from c2r.prediction import find_cluster

FEW = ["--tokens", "2048", "--policy", "priced=0.05,0.2"]


@pytest.fixture(scope="module")
def optimized(tmp_path_factory):
    out = tmp_path_factory.mktemp("optimize") / "found"
    command = ["optimize", "tiny", "--cluster", "hosts-4-10g", "--out", str(out), *FEW]
    assert run_command([*command, "--max-loss-increase", "0.5"]) == 0
    return out


def test_it_writes_a_plan_a_sweep_a_profile_and_a_report(optimized):
    names = {path.name for path in optimized.iterdir()}
    assert {"plan.safetensors", "sweep.json", "sweep.profile.safetensors"} <= names
    plan = Plan.load(optimized / "plan.safetensors")
    assert plan.topology.num_ranks == 4
    assert plan.provenance["expected"]["time"]["step"] > 0


def test_a_plan_from_the_sweep_says_where_placement_alone_does_as_well(optimized, capsys, tmp_path):
    found = json.loads((optimized / "sweep.json").read_text())
    point = min(found["points"], key=lambda point: point["step_time"])
    swept, profile = tmp_path / "sweep.json", str(optimized / "sweep.profile.safetensors")
    command = ["plan", profile, "--cluster", "hosts-4-10g", "--sweep", str(swept), "--json"]
    for share, is_told in ((0.97, True), (0.5, False)):
        point["step_time"] = share * found["baseline"]["step_time"]
        swept.write_text(json.dumps(found))
        assert run_command([*command, "--max-loss-increase", "10"]) == 0
        assert ("with placement alone" in capsys.readouterr().err) == is_told


def test_it_resumes_and_says_what_it_saves(optimized, capsys):
    command = ["optimize", "tiny", "--cluster", "hosts-4-10g", "--out", str(optimized), *FEW]
    assert run_command([*command, "--max-loss-increase", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_worth_it"]
    in_order = found["in_order"]
    assert (
        found["planned"]["step"] < in_order["zero_redundancy"]["step"] < in_order["k_fold"]["step"]
    )
    assert run_command([*command, "--max-loss-increase", "-1"]) == 2  # another request
    assert "replace it with --force" in capsys.readouterr().err
    assert run_command([*command, "--max-loss-increase", "-1", "--force"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Saves " in shown and "no loss, for it places experts only" in shown
    assert "The model is very small (hidden size 128)" in shown


def test_where_it_does_not_pay_the_command_with_replicas_runs(capsys, tmp_path):
    where = tmp_path / "my hosts.yaml"
    hosts = replace(find_cluster("hosts-4-10g"), name="mine")
    replace(hosts, launch_microseconds=1e6).save(where)  # which no plan shortens
    command = ["optimize", "tiny", "--cluster", str(where), "--out", str(tmp_path / "found"), *FEW]
    assert run_command([*command, "--phase", "decode"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("Or plan again, with replicas")]
    program, *words = shlex.split(line.partition(": ")[2])
    assert program == "c2r" and str(where) in words
    assert run_command(words) == 0
    made = Plan.load(tmp_path / "found" / "plan.safetensors")
    assert made.provenance["workload"] == {"tokens_per_rank": 128, "phase": "decode"}


def test_a_cluster_of_other_figures_is_another_search(capsys, tmp_path):
    where = tmp_path / "mine.yaml"
    slow = replace(find_cluster("hosts-4-10g"), name="mine")
    slow.save(where)
    command = ["optimize", "tiny", "--cluster", str(where), "--out", str(tmp_path / "found"), *FEW]
    assert run_command(command) == 0
    replace(slow, outer_gigabytes=0.1).save(where)
    assert run_command(command) == 2
    assert "holds another sweep: of another cluster_figures" in capsys.readouterr().err
    assert run_command([*command, "--force"]) == 0
    swept = json.loads((tmp_path / "found" / "sweep.json").read_text())
    assert swept["request"]["cluster_figures"]["outer_gigabytes"] == 0.1


def test_a_cluster_that_is_not_there_is_refused_before_the_model_runs(capsys, tmp_path):
    command = ["optimize", "tiny", "--cluster", "h1000", "--out", str(tmp_path / "x")]
    assert run_command(command) == 2
    assert "there is no cluster h1000" in capsys.readouterr().err


def test_a_model_of_ones_own_needs_text_of_ones_own(capsys, tmp_path):
    command = ["optimize", "my-model", "--cluster", "h100-8", "--out", str(tmp_path / "x")]
    assert run_command(command) == 2
    assert "Give some of that kind (--text)" in capsys.readouterr().err
