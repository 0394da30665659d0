"""Ctrl-C and SIGTERM: what is lost, what is said, and what is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from c2r.artifacts import atomic_folder, atomic_path, write_text
from c2r.cli import run_command

C2R = [sys.executable, "-m", "c2r"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SIGNALS = [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
PROFILE = ["profile", "tiny", "--tokens", "60000", "--seq-len", "256", "--batch-size", "1"]


def start(*arguments):
    return subprocess.Popen(
        [*C2R, *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is not ignored, as it is in the background of a shell
    )


@pytest.mark.parametrize(("number", "status", "word"), SIGNALS)
def test_a_signal_ends_a_command_in_one_line(capsys, monkeypatch, tmp_path, number, status, word):
    from c2r.cli import inspect

    monkeypatch.setattr(inspect, "note", lambda _: None)
    monkeypatch.setattr(Path, "read_bytes", lambda _: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert run_command(["inspect", str(tmp_path / "p.safetensors")]) == status
    assert capsys.readouterr().err == f"c2r: {word}\n"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("number", "status", "word"), SIGNALS)
def test_a_signal_while_modules_load_is_one_line(number, status, word):
    process = start("--version")
    time.sleep(0.4)  # Python is up, `c2r.cli` is being imported
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    ended = [(status, f"c2r: {word}\n"), (-number, ""), (0, "")]  # before, and after all
    assert (process.returncode, err) in ended, (out, err)


def test_sigterm_keeps_a_profile_that_the_same_command_completes(tmp_path):
    part, whole = tmp_path / "part.safetensors", tmp_path / "whole.safetensors"
    code = (
        "import os, signal\n"
        "from c2r.cli import console, run_command\n"
        "reach = console.Progress.reach\n"
        "def stop(self, amount, *rest):\n"
        "    reach(self, amount)\n"
        "    if amount > 5000: os.kill(os.getpid(), signal.SIGTERM)\n"
        "console.Progress.reach = stop\n"
        f"raise SystemExit(run_command({[*PROFILE, '--out', str(part)]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 143 and done.stderr.endswith("c2r: terminated\n")
    assert "run the same command to go on" in done.stderr
    assert run_command([*PROFILE, "--out", str(part)]) == 0
    assert run_command([*PROFILE, "--out", str(whole)]) == 0
    assert part.read_bytes() == whole.read_bytes()


def workers_of(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.fixture
def importing(tmp_path):
    """An import that is at work in several processes."""
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((400_000, 8)), axis=1)[:, :2].astype(np.int16)
    for index in range(16):
        np.savez(tmp_path / f"{index:02}.npz", layer_0=ids)
    out = tmp_path / "out.safetensors"
    process = start("import", tmp_path, "--format", "npz", "--num-experts", 8, "--out", out)
    deadline = time.monotonic() + 60
    while len(workers_of(process.pid)) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_command(importing, number):
    workers = workers_of(importing.pid)
    assert workers, "one machine has one core"
    importing.send_signal(number)
    _, said = importing.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    words = {signal.SIGTERM: "c2r: terminated\n", signal.SIGINT: "c2r: interrupted\n"}
    assert number not in words or said.endswith(words[number])
    assert "Traceback" not in said


def test_a_worker_that_is_killed_is_one_line(importing):
    os.kill(max(workers_of(importing.pid)), signal.SIGKILL)
    _, said = importing.communicate(timeout=60)
    assert importing.returncode == 2
    assert "a process that read files was killed" in said and "Traceback" not in said


def test_what_killed_programs_left_is_cleared_and_what_live_ones_write_is_not(tmp_path):
    path, folder = tmp_path / "plan", tmp_path / "model"
    (tmp_path / ".plan.abcdefgh").write_text("left")
    (tmp_path / ".model.abcdefgh").mkdir()
    (tmp_path / ".model.abcdefgh" / "weights").write_text("left")
    (tmp_path / ".plan.notes").write_text("the user's own")
    with atomic_path(path) as ours:
        ours.write_text("ours")
        write_text(path, "theirs")
        assert ours.read_text() == "ours"
    with atomic_folder(folder) as ours:
        (ours / "weights").write_text("ours")
    assert path.read_text() == "ours"
    names = {found.name for found in tmp_path.iterdir()}
    assert names == {"plan", "model", ".plan.notes"}


def test_files_have_the_modes_that_the_umask_asks_for(tmp_path):
    from safetensors.numpy import save_file

    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "model") as folder:
            save_file({"a": np.zeros(2)}, folder / "model.safetensors")
        write_text(tmp_path / "plan", "")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"model": 0o750, "model.safetensors": 0o640, "plan": 0o640}
