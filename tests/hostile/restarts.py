"""Ranks that are killed under `torchrun --max-restarts`, which starts all of them again."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import children, seconds_used
from tests.hostile import kills

MAX_RESTARTS = 3
_LIMIT = 900
_TUNE = ["finetune", "tiny", "--plan", "plan.safetensors", "--data", "data.txt"]
_TUNE += ["--steps", "8", "--batch-size", "4", "--seq-len", "128", "--batch-per-pass", "1"]
_TUNE += ["--save-every", "1", "--log-every", "1", "--out", "out"]
_CUT = ["--seq-len", "128", "--batch-size", "1"]
_ITEMS = 16


@dataclass(frozen=True)
class Command:
    """What so many ranks do; `is_exact` where the bits do not depend on who does what."""

    words: list[str]
    num_ranks: int = 2
    is_exact: bool = True


_SWEEP = ["sweep", "tiny", "--ranks", "2", "--policy", "priced=0.03", *_CUT]
_ANSWER = ["evaluate", "tiny", "--plan", "plan.safetensors", "--tasks", "piqa"]
_ANSWER += ["--tasks-dir", ".", "--batch-size", "1"]
COMMANDS = {
    "finetune": Command([*_TUNE, "--async-save"]),
    "finetune, experts spread": Command([*_TUNE, "--expert-parallel"]),
    "finetune, experts spread, the rest sharded": Command(
        [*_TUNE, "--expert-parallel", "--fsdp", "--async-save"], num_ranks=4
    ),
    "profile": Command(["profile", "tiny", *_CUT, "--tokens", "32768", "--out", "out.safetensors"]),
    "sweep": Command([*_SWEEP, "--tokens", "8192", "--out", "out.json"], is_exact=False),
    "evaluate": Command([*_ANSWER, "--out", "out.json"], is_exact=False),
}


def inputs(folder):
    """Writes what the commands read."""
    kills.inputs(folder, num_ranks=2)
    items = [
        {"goal": f"Open jar {number}.", "sol1": "With care.", "sol2": "Slowly, I see."}
        for number in range(_ITEMS)
    ]
    (folder / "piqa-valid.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "piqa-valid-labels.lst").write_text("0\n1\n" * (_ITEMS // 2))


def launch(name, work):
    """The ranks of a command, started by torchrun on one machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(COMMANDS[name].num_ranks)]
    command += ["--max-restarts", str(MAX_RESTARTS), "--monitor-interval", "0.1"]
    command += ["-m", "c2r", *COMMANDS[name].words, "--timeout", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with work.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def undisturbed(name, inputs, work):
    """Processor seconds that a rank uses, and what the command leaves."""
    shutil.copytree(inputs, work)
    process, seconds = launch(name, work), 0.0
    while process.poll() is None:
        seconds = max([seconds, *map(seconds_used, workers(process.pid))])
        time.sleep(0.02)
    assert process.returncode == 0, said(work)
    return seconds, kills.contents(work)


def trial(name, inputs, work, moments, whole, rng):
    """Kills a rank at each of these moments, as long as there is one.

    A moment is told by the processor seconds of a rank since all were started, so that it is at the
    same place of the work on a busy machine. Gives the moment and the rank of each loss, and what
    was otherwise than undisturbed in the end; None where nothing was.
    """
    shutil.copytree(inputs, work)
    process = launch(name, work)
    lost, ranks = [], []
    try:
        for moment in moments:
            ranks = ranks_at(process, moment, ranks)
            if not ranks:
                break
            victim = rng.randrange(len(ranks))
            os.kill(ranks[victim], signal.SIGKILL)
            lost.append((moment, victim))
        status = process.wait(_LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if status != 0:
        return lost, f"status {status}: {said(work)}"
    return lost, differences(kills.contents(work), whole, COMMANDS[name].is_exact)


def ranks_at(process, moment, gone):
    """The ranks other than those that are `gone`, at this moment; none where all end before it."""
    while process.poll() is None:
        ranks = [pid for pid in workers(process.pid) if pid not in gone]
        if ranks and max(map(seconds_used, ranks)) >= moment:
            return ranks
        time.sleep(0.02)
    return []


def differences(found, whole, is_exact=True):
    """How two folders differ, in words; None where they do not, or not but for rounding."""
    told = kills.differences(found, whole)
    if told is None or is_exact or found.keys() != whole.keys():
        return told
    differing = [name for name in whole if not _alike(found[name], whole[name])]
    return f"differs: {differing}" if differing else None


def _alike(found, whole):
    if isinstance(whole, dict):
        return found.keys() == whole.keys() and all(_alike(found[k], whole[k]) for k in whole)
    if isinstance(whole, list):
        return len(found) == len(whole) and all(map(_alike, found, whole))
    if isinstance(whole, float):
        return math.isclose(found, whole, rel_tol=1e-5, abs_tol=1e-6)
    return found == whole


def workers(pid):
    """The ranks that are at work, in order."""
    found = []
    with suppress(OSError):  # those that end while we look
        for child in children(pid):
            if b"c2r" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                found.append(child)
    return found


def said(work):
    """The end of what all said."""
    return work.with_suffix(".log").read_text(errors="replace")[-1500:]
