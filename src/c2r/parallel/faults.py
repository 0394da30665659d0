"""Who is missing when an exchange fails."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from c2r.errors import CommunicationError
from c2r.parallel.signs import Signs, world_signs


def grace_seconds(timeout: float) -> float:
    """The part of a timeout that is left for finding out who is missing.

    A quarter, so that short timeouts still leave most for the exchange; five seconds suffice for
    ranks that only have to notice their own failure and write it down. Chosen by hand.
    """
    return min(5.0, timeout / 4)


def named_failure(what: str, error: BaseException) -> CommunicationError | None:
    """The error that says who did not answer in `what`; None for an error of another kind."""
    signs = world_signs()
    if signs is None or not isinstance(error, RuntimeError) or not _is_lost_connection(error):
        return None
    return failure_of(signs, what, list(range(signs.size)), signs.timeout, error)


def failure_of(
    signs: Signs, what: str, members: list[int], timeout: float, error: RuntimeError
) -> CommunicationError:
    """The error that says who did not answer in `what`, or what a rank ended with."""
    missing = signs.missing(members, what, grace_seconds(timeout))
    words = signs.first_words()
    if words is not None:
        return CommunicationError(words)
    return no_answer(missing, signs.rank, what, timeout, error)


def no_answer(
    missing: Sequence[int], rank: int, what: str, timeout: float, error: RuntimeError
) -> CommunicationError:
    """The error of `rank`, whom the `missing` ranks did not answer."""
    who = f"rank {', '.join(map(str, missing))}" if missing else "a rank"
    return CommunicationError(
        f"{who} did not answer rank {rank} in {what} (timeout {timeout:g} s; {first_line(error)}); "
        f"look at the output of {who}"
    )


_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "broken pipe")


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether torch says that another rank did not answer; gloo has no class for it."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in said for word in _LOST)


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


def first_line(error: Exception) -> str:
    """What torch said, without its stack."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no reason given"
