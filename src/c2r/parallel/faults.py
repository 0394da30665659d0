"""Who is missing when an exchange fails."""

import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def grace_seconds(timeout: float) -> float:
    """The part of a timeout that is left for finding out who is missing.

    A quarter, so that short timeouts still leave most for the exchange; five seconds suffice for
    ranks that only have to notice their own failure and write it down. Chosen by hand.
    """
    return min(5.0, timeout / 4)


def missing_ranks(group: Any, what: str, timeout: float) -> tuple[int, ...]:
    """The ranks of `group` that do not report the same failure soon after this one.

    Every rank whose exchange fails leaves a mark in the group's store. One that died or hangs
    leaves none. Empty where the store itself is gone.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    store = group.get_group_store()
    grace = grace_seconds(timeout)
    missing = set(range(size)) - {rank}
    try:
        store.set_timeout(timedelta(seconds=grace))
        store.set(f"c2r/stopped/{rank}", what)
        deadline = time.monotonic() + grace
        while missing and time.monotonic() < deadline:
            missing -= {other for other in missing if store.check([f"c2r/stopped/{other}"])}
            time.sleep(0.02)  # the store is one process; its clients should not spin on it
    except RuntimeError:  # The process that keeps the store is gone.
        return ()
    return tuple(sorted(missing))


def first_line(error: RuntimeError) -> str:
    """What torch said, without its stack."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no reason given"
