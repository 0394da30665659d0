"""What the environment tells a process of the others; without torchrun there is one, the first."""

import os


def process_rank() -> int:
    """Which process this is."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether torchrun started this process, alone or with others."""
    return "WORLD_SIZE" in os.environ


def place_on_machine() -> int:
    """Which process of its machine this is, as devices are numbered."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_processes_per_machine() -> int:
    """How many torchrun started on each machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))


def network_interface() -> str | None:
    """The network interface that gloo was told to use."""
    return os.environ.get("GLOO_SOCKET_IFNAME")


def is_first_process() -> bool:
    """Whether this is the process that speaks to the user and writes what all share."""
    return process_rank() == 0
