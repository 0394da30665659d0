"""Jobs that SLURM takes from their node at a random moment, and runs again."""

import shutil
import socket
import time
from contextlib import chdir, suppress
from subprocess import CalledProcessError

from tests.hostile import kills, restarts
from tests.slurm.machine import is_over, number_of, script, state_of, submit, text_of, wait_for

COMMAND = restarts.COMMANDS["finetune, experts spread"].words
NUM_STEPS = int(COMMAND[COMMAND.index("--steps") + 1])
WAYS = ("requeued", "preempted", "node lost")
_LIMIT = 600


def run(inputs, work, losses=()):
    """Runs a job to its end, and takes it from its node after so many steps and seconds, each time.

    Gives what it was taken by and when, what it leaves, and what it said.
    """
    shutil.copytree(inputs, work)
    (work / "c2r.sbatch").write_text(script())
    lost = []
    with chdir(work):
        job = submit(COMMAND)
        for way, step, seconds in losses:
            wait_for(lambda step=step: is_through(job) or is_at(job, work, step), _LIMIT)
            time.sleep(seconds)
            if is_over(job):
                break
            before = number_of(job, "Restarts")
            _take(job, way)
            wait_for(lambda before=before: is_over(job) or number_of(job, "Restarts") > before, 300)
            if number_of(job, "Restarts") > before:
                lost.append((way, step, seconds))
        wait_for(lambda: is_through(job), _LIMIT)
    log = work / f"slurm-{job}.out"
    told = log.read_text(errors="replace")
    log.unlink()
    assert state_of(job) == "COMPLETED", told[-1500:]
    return lost, kills.contents(work), told


def is_at(job, work, step):
    """Whether a job runs that has written a checkpoint of this step, or a later one."""
    made = [int(path.name.partition("-")[2]) for path in work.glob("out.partial/checkpoint-*")]
    return state_of(job) == "RUNNING" and max([0, *made]) >= step


def is_through(job):
    """As `is_over`; one that SLURM would let wait for two minutes runs at once."""
    if state_of(job) == "PENDING":
        with suppress(CalledProcessError):  # the node was not down
            _set_node("state=resume")
        with suppress(CalledProcessError):  # held, for the node was not ready after its loss
            text_of("scontrol", "release", job)
        with suppress(CalledProcessError):  # it runs by now
            text_of("scontrol", "update", f"jobid={job}", "starttime=now")
    return is_over(job)


def _take(job, way):
    if way == "requeued":
        text_of("scontrol", "requeue", job)
    elif way == "preempted":
        text_of("sbatch", "--partition", "high", "-n1", "-c2", "-o", "/dev/null", "--wrap", "true")
    else:
        _set_node("state=down", "reason=lost")


def _set_node(*words):
    host = socket.gethostname().partition(".")[0]
    text_of("scontrol", "update", f"nodename={host}", *words)
