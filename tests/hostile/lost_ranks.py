"""Ranks that are killed or stopped at a random moment, and what the others say of them."""

import os
import re
import signal
import socket
import time

from tests.hostile.children import Child

NUM_RANKS = 4
_MORE_SECONDS = 5  # that a rank may take beyond its timeout
_TUNE = ["finetune", "tiny", "--plan", "plan.safetensors", "--data", "data.txt"]
_TUNE += ["--steps", "6", "--batch-size", "4", "--seq-len", "128"]
_TUNE += ["--save-every", "2", "--log-every", "1"]
_CUT = ["--tokens", "12288", "--seq-len", "256", "--batch-size", "2"]
_MEASURE = ["bench", "cluster", "--hidden-size", "32", "--intermediate-size", "16"]
_MEASURE += ["--dtype", "float32", "--size", "4096", "--size", "65536", "--rows", "8"]
_MEASURE += ["--rows", "64"]
COMMANDS = {
    "run": ["run", "tiny", "--plan", "plan.safetensors", *_CUT],
    "profile": ["profile", "tiny", *_CUT, "--out", "out.safetensors"],
    "finetune": [*_TUNE, "--out", "out"],
    "finetune, experts spread": [*_TUNE, "--expert-parallel", "--out", "out"],
    "bench cluster": [*_MEASURE, "--rounds", "2", "--out", "out.yaml"],
}


_LONGER = {
    "run": ["--tokens", "65536"],
    "profile": ["--tokens", "65536"],
    "bench cluster": ["--rounds", "500"],
}
"""Options with which a command is still at work when a rank is lost, on a fast machine too."""


def start(name, work, timeout, odd=None, more=(), absent=()):
    """The ranks of a command, without torchrun, which would end them all.

    `odd` adds options to single ranks, `more` to all; the `absent` are not started.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Child.start(
            [*COMMANDS[name], "--timeout", str(timeout), *more, *(odd or {}).get(rank, ())],
            work.with_suffix(f".{rank}"),
            work,
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(NUM_RANKS)
        if rank not in absent
    ]


def trial(name, work, victim, number, moment, timeout=6):
    """Kills or stops a rank; gives the verdict: `late`, `named`, or what was wrong."""
    children = start(name, work, timeout, more=_LONGER.get(name, ()))
    try:
        time.sleep(moment)
        if children[victim].wait(0.02) is not None:
            return "late"
        os.kill(children[victim].pid, number)
        end = time.monotonic() + timeout + _MORE_SECONDS
        others = [rank for rank in range(NUM_RANKS) if rank != victim]
        status = {rank: children[rank].wait(max(end - time.monotonic(), 0.1)) for rank in others}
        said = {rank: (children[rank].said.strip().splitlines() or [""])[-1] for rank in others}
        if all(code == 0 for code in status.values()):
            return "late"
        if None in status.values():
            return f"hangs: {status} {said}"
        wrong = [rank for rank in others if not _names(said[rank], victim)]
        return f"not named: {status} {[said[rank] for rank in wrong]}" if wrong else "named"
    finally:
        for child in children:
            child.end()


def _names(line, victim):
    found = re.match(r"c2r: rank ([\d, ]+)\b", line)
    return found is not None and found[1].strip(", ") == str(victim)


def duration(name, work):
    """Seconds that the command takes undisturbed."""
    started = time.monotonic()
    children = start(name, work, 60)
    statuses = [child.wait(240) for child in children]
    for child in children:
        child.end()
    assert statuses == [0] * NUM_RANKS, [child.said[-500:] for child in children]
    return time.monotonic() - started


SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
