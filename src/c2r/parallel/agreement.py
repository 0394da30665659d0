"""Ranks find out before the first exchange whether they run the same thing, and fail together."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from c2r import errors
from c2r.errors import C2RError, CommunicationError
from c2r.parallel.comm import Comm
from c2r.parallel.world import gather_bytes


def agree(facts: Mapping[str, Any], comm: Comm) -> None:
    """Compares `facts`, JSON data by name, over all ranks.

    Raises:
        CommunicationError: on every rank, telling what differs, where, and both values; or a rank
            does not answer.
    """
    own = json.dumps(facts).encode()
    table = [json.loads(data) for data in gather_bytes(own, comm, "the first agreement")]
    for name in facts:
        values = [json.dumps(row.get(name)) for row in table]
        common, _ = Counter(values).most_common(1)[0]
        differing = [rank for rank, value in enumerate(values) if value != common]
        if differing:
            ranks = ", ".join(map(str, differing))
            raise CommunicationError(
                f"{name} of rank {ranks} differs: {values[differing[0]]} there, {common} on the "
                "others; start all ranks with the same arguments"
            )


def do_together(
    work: Callable[[], str | None], comm: Comm, what: str, *, only_first: bool = False
) -> str:
    """Runs `work`, such as the writing of a file, on every rank or on the first one alone.

    Args:
        work: gives a string, or nothing.
        comm: the ranks.
        what: what an error of the exchange calls it.
        only_first: whether the other ranks only wait.

    Returns:
        What `work` gave on the first rank.

    Raises:
        C2RError: on every rank, where any failed: what the first of these says.
        CommunicationError: a rank does not answer.
    """
    answer, failure = None, None
    if comm.rank == 0 or not only_first:
        try:
            answer = work()
        except CommunicationError:
            raise
        except C2RError as error:
            failure = error
    told = [type(failure).__name__, str(failure)] if failure else None
    # All hear of a failure before any raises; the others would wait for one that raised alone.
    parts = gather_bytes(json.dumps([answer, told]).encode(), comm, what)
    table = [json.loads(part) for part in parts]
    failed = [rank for rank, (_, failure) in enumerate(table) if failure]
    if failed:
        kind, text = table[failed[0]][1]
        is_shared = failed[0] == 0 or len(failed) == comm.size  # as one process would say it
        raise getattr(errors, kind)(text if is_shared else f"rank {failed[0]}: {text}") from failure
    return str(table[0][0] or "")
