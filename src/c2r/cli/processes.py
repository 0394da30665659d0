"""What the environment tells a process of the others; without torchrun there is one, the first."""

import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.context import SpawnProcess
from pathlib import Path

import typer

from c2r.errors import CommunicationError, InputError
from c2r.interrupts import end_with_parent

_SECONDS_TO_TELL = 10.0  # for the first process, to find out which other failed, and say it
_SECONDS_TO_END = 5.0


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


def is_restarted() -> bool:
    """Whether torchrun or SLURM has started this process again, for it was lost or preempted."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(_number(name, 0, 0) for name in names)


def network_interface() -> str | None:
    """The network interface that gloo was told to use."""
    return os.environ.get("GLOO_SOCKET_IFNAME")


def is_first_process() -> bool:
    """Whether this is the process that speaks to the user and writes what all share."""
    return process_rank() == 0


def without_bars() -> None:
    """Keeps libraries that are imported later from drawing progress bars, unless asked to."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


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

    The first writes to our stdout and stderr. Where another fails, and the first has not told why,
    what that one said is shown. All are ended when one fails, and end with this process. Gives the
    exit status of the first that failed, else 0; raises `CommunicationError` where it was killed.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ExitStack() as cleanup:
        logs = [Path(name, str(rank)) for rank in range(number)]
        processes: list[SpawnProcess] = []
        cleanup.callback(_end, processes)
        for rank in range(number):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = None if rank == 0 else logs[rank]
            processes.append(context.Process(target=_work, args=(arguments, environment, log)))
            processes[-1].start()
        while any(process.is_alive() for process in processes):
            failed = next((r for r, process in enumerate(processes) if process.exitcode), None)
            if failed is not None:
                return _status_of(failed, processes, logs[failed])
            time.sleep(0.05)
        return next((process.exitcode for process in processes if process.exitcode), 0)


def _status_of(failed: int, processes: list[SpawnProcess], log: Path) -> int:
    """The status of the process that failed first, when its error has been told."""
    status = processes[failed].exitcode or 0
    if status < 0:
        raise CommunicationError(
            f"rank {failed} was killed by signal {-status}, perhaps for want of memory; start fewer"
        )
    processes[0].join(_SECONDS_TO_TELL)
    if not processes[0].exitcode and log.exists():
        sys.stderr.write(log.read_text(errors="replace"))
    return status


def _work(arguments: list[str], environment: dict[str, str], log: Path | None) -> None:
    """What one of the processes does; without a log it speaks to the user."""
    from c2r.cli import run_command

    end_with_parent()
    os.environ.update({"OMP_NUM_THREADS": "1", **os.environ, **environment})
    if log is not None:
        for number, path in ((1, os.devnull), (2, log)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.exit(run_command(arguments))


def _end(processes: list[SpawnProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_SECONDS_TO_END)
        process.kill()  # one that waits in a call of torch does not hear the first
        process.join()
