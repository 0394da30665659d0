"""Processes that a command starts itself: they end with it, and it tells of the one that ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
from c2r.cli.processes import run_processes
from c2r.errors import CommunicationError
try:
    raise SystemExit(run_processes(["inspect", "pipe"], 2))
except CommunicationError as error:
    raise SystemExit(str(error))
"""


@pytest.fixture
def start(tmp_path):
    """Starts a command of two processes that read a pipe."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", CODE], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def await_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(command):
    """The processes of its ranks, in order, without Python's own helper."""
    found = subprocess.run(
        ["pgrep", "-P", str(command.pid), "-f", "spawn_main"], capture_output=True, check=False
    )
    return sorted(map(int, found.stdout.split()))


@pytest.mark.parametrize("victim", ["the command", "a rank"])
def test_processes_end_with_the_command_and_with_each_other(start, tmp_path, victim):
    os.mkfifo(tmp_path / "pipe")  # they wait for somebody who writes
    command = start()
    await_until(lambda: len(ranks_of(command)) == 2)
    ranks = ranks_of(command)
    os.kill(command.pid if victim == "the command" else ranks[1], signal.SIGKILL)
    said = command.communicate(timeout=60)[1]
    if victim == "a rank":
        assert said.splitlines()[-1].startswith("rank 1 was killed by signal 9")
    await_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))


def test_the_error_of_another_rank_is_told(start):
    command = start()
    _, said = command.communicate(timeout=60)
    assert command.returncode == 2
    assert "cannot read pipe" in said
