"""Ranks that are killed under `torchrun --max-restarts`, which starts all of them again."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.hostile import lost_ranks
from tests.hostile.kills import contents, differences

NUM_RANKS = 2
COMMANDS = {
    name: lost_ranks.COMMANDS[name] for name in ("finetune", "finetune, experts spread", "profile")
}
_LIMIT = 400


def launch(name, work, max_restarts=3):
    """The ranks of a command, started by torchrun on one machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(NUM_RANKS), "--max-restarts", str(max_restarts)]
    command += ["--monitor-interval", "0.1", "-m", "c2r", *COMMANDS[name], "--timeout", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with work.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def undisturbed(name, inputs, work):
    """Seconds that the command takes, and what it leaves."""
    shutil.copytree(inputs, work)
    started = time.monotonic()
    assert launch(name, work).wait(_LIMIT) == 0, said(work)
    return time.monotonic() - started, contents(work)


def trial(name, inputs, work, moments, whole, rng=random):
    """Kills a rank at each of these moments; None where all ends as undisturbed.

    A moment counts from the start, or from the kill before it.
    """
    shutil.copytree(inputs, work)
    process = launch(name, work, max_restarts=len(moments))
    num_lost = 0
    try:
        for moment in moments:
            time.sleep(moment)
            ranks = workers(process.pid)
            if not ranks:
                break
            os.kill(rng.choice(ranks), signal.SIGKILL)
            num_lost += 1
        status = process.wait(_LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if status != 0:
        return num_lost, f"status {status}: {said(work)}"
    return num_lost, differences(contents(work), whole)


def workers(pid):
    """The ranks that are at work."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"c2r" in words:
            found.append(int(child))
    return found


def said(work):
    """The end of what all said."""
    return work.with_suffix(".log").read_text(errors="replace")[-1500:]
