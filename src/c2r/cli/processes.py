"""What the environment tells a process of the others; without torchrun there is one, the first."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import typer

from c2r.errors import InputError


def process_rank() -> int:
    """Which process this is. Raises `InputError` where the environment makes no sense."""
    rank, size = _number("RANK", 0, 0), num_processes()
    if rank >= size:
        raise InputError(f"RANK={rank} is not below WORLD_SIZE={size}; start the ranks by torchrun")
    return rank


def num_processes() -> int:
    """How many torchrun started. Raises `InputError` where the environment makes no sense."""
    return _number("WORLD_SIZE", 1, 1)


def is_launched() -> bool:
    """Whether torchrun started this process, alone or with others."""
    return "WORLD_SIZE" in os.environ


def place_on_machine() -> int:
    """Which process of its machine this is, as devices are numbered."""
    return _number("LOCAL_RANK", 0, 0)


def num_processes_per_machine() -> int:
    """How many torchrun started on each machine."""
    return _number("LOCAL_WORLD_SIZE", num_processes(), 1)


def network_interface() -> str | None:
    """The network interface that gloo was told to use."""
    return os.environ.get("GLOO_SOCKET_IFNAME")


def is_first_process() -> bool:
    """Whether this is the process that speaks to the user and writes what all share."""
    return process_rank() == 0


def tell_torchrun(line: str) -> None:
    """Leaves an error where torchrun looks for it, which prints it after all else."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        content = {"message": {"message": line, "extraInfo": extra}}
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def _number(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise InputError(
            f"{name}={text} in the environment is no whole number from {least}; start the ranks "
            "by torchrun"
        )
    return int(text)


def arguments_of(context: typer.Context) -> list[str]:
    """The command with all its options, as a process that is to do the same is given them."""
    words = context.command_path.split()[1:]
    for option in context.command.params:
        value = context.params.get(str(option.name))
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is True:
                words += option.opts[:1]
            elif each is not None and each is not False:
                words += [*option.opts[:1], str(each)]
    return words


def run_processes(arguments: list[str], number: int) -> int:
    """Runs `c2r` with these arguments in so many processes of this machine, as torchrun does.

    The first writes to our stdout and stderr; of the others only an error is shown, of the one that
    failed first. All are ended when one fails. Gives the exit status: of the first that failed,
    else 0.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with ExitStack() as cleanup:
        logs = [cleanup.enter_context(tempfile.TemporaryFile()) for _ in range(number)]
        processes: list[subprocess.Popen[bytes]] = []
        cleanup.callback(_end, processes)
        for rank in range(number):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number}
            meeting = {"LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in (ranks | meeting).items()}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "c2r", *arguments],
                    env={"OMP_NUM_THREADS": "1", **os.environ, **environment},
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=None if rank == 0 else logs[rank],
                )
            )
        while any(process.poll() is None for process in processes):
            failed = [rank for rank, process in enumerate(processes) if process.poll()]
            if failed:
                logs[failed[0]].seek(0)
                sys.stderr.write(logs[failed[0]].read().decode(errors="replace"))
                return int(processes[failed[0]].returncode)
            time.sleep(0.05)
        return next((process.returncode for process in processes if process.returncode), 0)


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
