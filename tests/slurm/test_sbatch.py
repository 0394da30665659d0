"""The batch script of the docs on a SLURM of this machine; `make test` leaves it out.

    C2R_SLURM=1 pytest tests/slurm

Needs root, and Debian's slurm-wlm and munge. SLURM is set up in a temporary folder and ended.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from c2r.cli import run_command

PAGE = Path(__file__).parents[2] / "docs/how-to/several-machines.md"
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not os.environ.get("C2R_SLURM")
        or os.geteuid() != 0
        or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
        reason="C2R_SLURM is not set, or there is no SLURM to start as root",
    ),
]
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


def text_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of one node; gives its folder."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, folder=folder, cores=max(os.cpu_count() or 1, 2))
    )
    os.environ["SLURM_CONF"] = str(configuration)
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        shutil.chown(key, "munge")
        key.chmod(0o400)
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=False, capture_output=True)
    for daemon in ("slurmctld", "slurmd"):
        subprocess.run([daemon, "-f", str(configuration)], check=True)
    wait_for(lambda: "idle" in text_of("sinfo", "-h", "-o", "%t"), 60)
    yield folder
    for daemon in ("slurmd", "slurmctld"):
        with suppress(OSError, ValueError):
            os.kill(int((folder / f"{daemon}.pid").read_text()), signal.SIGTERM)


def wait_for(is_so, seconds):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.2)


def script():
    """The batch script as the docs show it."""
    found = re.search(r'```bash title="c2r.sbatch"\n(.+?)```', PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def state_of(job):
    return re.search(r"JobState=(\w+)", text_of("scontrol", "show", "job", job))[1]


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
    Path("c2r.sbatch").write_text(script())
    smaller = ["--nodes=1", "--cpus-per-task=2", "--gpus-per-node=0"]  # than the script asks for
    tune = ["finetune", "tiny", "--plan", "plan.safetensors", "--data", "data.txt", "--steps", "30"]
    tune += ["--batch-size", "4", "--seq-len", "128", "--save-every", "5"]

    def submit(out):
        return text_of("sbatch", "--parsable", *smaller, "c2r.sbatch", *tune, "--out", out)

    whole = submit("whole")
    wait_for(lambda: state_of(whole) in ("COMPLETED", "FAILED"), 300)
    assert state_of(whole) == "COMPLETED", Path(f"slurm-{whole}.out").read_text()

    job = submit("preempted")
    wait_for(lambda: list(Path().glob("preempted.partial/checkpoint-*")), 300)
    text_of("sbatch", "--partition", "high", "-n1", "-c2", "--wrap", "sleep 1")
    wait_for(lambda: state_of(job) in ("COMPLETED", "FAILED"), 600)
    said = Path(f"slurm-{job}.out").read_text()
    assert "Restarts=1" in text_of("scontrol", "show", "job", job), said
    assert state_of(job) == "COMPLETED" and "c2r: terminated" in said, said
    assert "going on from step" in said
    ours, theirs = (Path(out, "model.safetensors").read_bytes() for out in ("preempted", "whole"))
    assert ours == theirs
