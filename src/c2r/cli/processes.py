"""What torchrun tells a process of itself; without torchrun there is one, the first."""

import os


def process_rank() -> int:
    """Which process this is."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that speaks to the user and writes what all share."""
    return process_rank() == 0
