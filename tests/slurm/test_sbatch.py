"""The batch script of the docs on a SLURM of this machine; `make test` leaves it out.

    C2R_SLURM=1 pytest tests/slurm

Needs root, and Debian's slurm-wlm and munge. SLURM is set up in a temporary folder and ended.
`scripts/campaign --requeues N` loses jobs at random moments.
"""

import os
from pathlib import Path

import pytest

from c2r.cli import run_command
from tests.slurm import machine
from tests.slurm.machine import is_over, state_of, submit, text_of, wait_for

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not os.environ.get("C2R_SLURM") or not machine.IS_THERE,
        reason="C2R_SLURM is not set, or there is no SLURM to start as root",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with machine.slurm(tmp_path_factory.mktemp("slurm")):
        yield


def test_a_preempted_job_runs_again_to_the_weights_of_one_that_was_not(
    slurm, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKS_PER_NODE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("data.txt").write_text("The rank that holds an expert computes it. " * 200)
    cutting = ["--tokens", "4096", "--seq-len", "256"]
    assert run_command(["profile", "tiny", *cutting, "--out", "profile.safetensors"]) == 0
    plan = ["plan", "profile.safetensors", "--ranks", "2", "--out", "plan.safetensors"]
    assert run_command(plan) == 0
    Path("c2r.sbatch").write_text(machine.script())
    tune = ["finetune", "tiny", "--plan", "plan.safetensors", "--data", "data.txt", "--steps", "30"]
    tune += ["--batch-size", "4", "--seq-len", "128", "--save-every", "5"]

    whole = submit([*tune, "--out", "whole"])
    wait_for(lambda: is_over(whole), 300)
    assert state_of(whole) == "COMPLETED", Path(f"slurm-{whole}.out").read_text()

    job = submit([*tune, "--out", "preempted"])
    wait_for(lambda: list(Path().glob("preempted.partial/checkpoint-*")), 300)
    text_of("sbatch", "--partition", "high", "-n1", "-c2", "--wrap", "sleep 1")
    wait_for(lambda: is_over(job), 600)
    said = Path(f"slurm-{job}.out").read_text()
    assert machine.number_of(job, "Restarts") == 1, said
    assert state_of(job) == "COMPLETED" and "c2r: terminated" in said, said
    assert "going on from step" in said
    ours, theirs = (Path(out, "model.safetensors").read_bytes() for out in ("preempted", "whole"))
    assert ours == theirs
