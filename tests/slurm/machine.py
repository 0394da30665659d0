"""A SLURM of one node on this machine, and the batch script of the docs."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/how-to/several-machines.md"
IS_THERE = os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "slurmd", "munged")))
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


@contextmanager
def slurm(folder):
    """A SLURM of one node, which keeps its state in a folder."""
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
    try:
        yield
    finally:
        for daemon in ("slurmd", "slurmctld"):
            with suppress(OSError, ValueError):
                _end(int((folder / f"{daemon}.pid").read_text()))


def _end(pid):
    """Ends a daemon; until it is gone, it writes to its folder. Raises `OSError` where it is."""
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", 60)


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


def submit(words):
    """Has the batch script in this folder run a command on ranks of one node; gives the job."""
    smaller = ["--nodes=1", "--cpus-per-task=2", "--gpus-per-node=0"]  # than the script asks for
    return text_of("sbatch", "--parsable", *smaller, "c2r.sbatch", *words)


def is_over(job):
    """Whether a job has ended, well or not."""
    return state_of(job) in ("COMPLETED", "FAILED")


def state_of(job):
    """The state of a job, in SLURM's words."""
    return _told(job, "JobState")


def number_of(job, name):
    """A number that SLURM tells of a job."""
    return int(_told(job, name))


def _told(job, name):
    return re.search(rf"\b{name}=(\w+)", text_of("scontrol", "show", "job", job))[1]
