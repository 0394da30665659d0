"""What the environment tells a process of the others; without torchrun there is one, the first."""

import json
import os
import time
from pathlib import Path

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
