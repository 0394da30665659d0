"""`c2r run` in one process and under torchrun."""

import json
import os
import subprocess
import sys

import pytest

from c2r.cli import run_command
from c2r.profiling import CollaborationProfile

ARGUMENTS = ["--tokens", "3000", "--seq-len", "256", "--json"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    profile, plan = str(folder / "profile.safetensors"), str(folder / "plan.safetensors")
    assert (
        run_command(["profile", "tiny", "--out", profile, "--tokens", "2000", "--seq-len", "256"])
        == 0
    )
    assert run_command(["plan", profile, "--ranks", "2", "--top-t", "12", "--out", plan]) == 0
    return plan


def torchrun(*arguments, num_ranks=2, name="run"):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
    return subprocess.run(
        [*command, "-m", "c2r", name, "tiny", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.distributed
def test_the_loss_is_that_of_one_process(capsys, plan):
    assert run_command(["run", "tiny", "--plan", plan, *ARGUMENTS]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["layers"] == []
    result = torchrun("--plan", plan, "--chunks", "2", *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    together = json.loads(result.stdout)  # one document, from one rank
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert together["num_predicted"] == alone["num_predicted"]
    assert len(together["layers"]) == 4
    for layer in together["layers"]:
        assert 1 <= layer["copies"] <= 2
        assert layer["remote_copies"] < layer["copies"]


@pytest.mark.distributed
def test_sharded_over_two_groups_the_loss_is_the_same(capsys, plan):
    arguments = ["--tokens", "2500", "--seq-len", "256", "--batch-size", "1", "--json"]
    assert run_command(["run", "tiny", "--plan", plan, *arguments]) == 0
    alone = json.loads(capsys.readouterr().out)
    result = torchrun("--plan", plan, "--fsdp", *arguments, num_ranks=4)
    assert result.returncode == 0, result.stderr
    together = json.loads(result.stdout)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert together["num_predicted"] == alone["num_predicted"]


def test_one_process_is_not_sharded(capsys, plan):
    assert run_command(["run", "tiny", "--plan", plan, "--fsdp", *ARGUMENTS]) == 2
    assert "--fsdp needs several processes; start it by `torchrun" in capsys.readouterr().err


def test_chunks_that_are_no_number(capsys, plan):
    for text in ("0", "many"):
        assert run_command(["run", "tiny", "--plan", plan, "--chunks", text]) == 2
        assert f"--chunks {text}: write a number from 1, or auto" in capsys.readouterr().err


@pytest.mark.distributed
def test_a_plan_for_other_ranks(plan):
    result = torchrun("--plan", plan, *ARGUMENTS, num_ranks=1)
    assert result.returncode != 0
    assert "the plan is for 2 ranks, 1 are running" in result.stderr
    assert result.stdout == ""


@pytest.mark.distributed
def test_no_rank_needs_all_experts_to_profile(tmp_path):
    arguments = ["--tokens", "3000", "--seq-len", "256", "--batch-size", "2"]  # 6 batches
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert run_command(["profile", "tiny", "--out", str(one), *arguments]) == 0
    result = torchrun(*arguments, "--expert-parallel", "--out", str(two), name="profile")
    assert result.returncode == 0, result.stderr
    alone, together = CollaborationProfile.load(one), CollaborationProfile.load(two)
    for ours, theirs in zip(alone.layers, together.layers, strict=True):
        assert (ours.coactivation == theirs.coactivation).all()
        assert (ours.load == theirs.load).all()


@pytest.mark.distributed
def test_no_rank_needs_all_experts_to_measure(capsys, plan):
    arguments = [
        "--plan",
        plan,
        "--tokens",
        "2500",
        "--seq-len",
        "256",
        "--batch-size",
        "4",
        "--json",
    ]
    assert run_command(["measure", "tiny", *arguments]) == 0
    alone = json.loads(capsys.readouterr().out)
    result = torchrun(*arguments, "--expert-parallel", name="measure")
    assert result.returncode == 0, result.stderr
    together = json.loads(result.stdout)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert together["loss_increase"] == pytest.approx(alone["loss_increase"], rel=1e-4)
    for name in ("copies", "rank_rows", "num_tokens", "active_experts_per_rank"):
        assert together[name] == alone[name]


def test_the_experts_of_one_process_are_not_spread(capsys, tmp_path):
    out = str(tmp_path / "profile.safetensors")
    assert run_command(["profile", "tiny", "--out", out, "--expert-parallel"]) == 2
    assert (
        "--expert-parallel needs several processes; start it by `torch" in capsys.readouterr().err
    )
