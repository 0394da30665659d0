"""All processes that torchrun started, as one group."""

from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from c2r.errors import CommunicationError
from c2r.parallel.comm import Comm, ProcessGroupComm, SplitSizes
from c2r.parallel.faults import first_line, grace_seconds, named_failure
from c2r.parallel.signs import DEFAULT_TIMEOUT, Signs, begin_signs, world_signs


def join_world(timeout: float | None = None, backend: str | None = None) -> ProcessGroupComm:
    """All processes that torchrun started; the first call joins them, later ones find them joined.

    Args:
        timeout: seconds after which a process that does not come, gives no sign of life or does not
            answer is an error; that of the first call where absent, or 60.
        backend: of torch's, for the first call; torch's choice for the machine where absent.

    Raises:
        CommunicationError: not all processes come in time.
    """
    if not dist.is_initialized():
        store, rank, size = _meet(timeout or DEFAULT_TIMEOUT)
        signs = begin_signs(store, rank, size, timeout or DEFAULT_TIMEOUT)
        signs.meet("the start")
        _make_group(store, signs, backend)
    elif world_signs() is None:  # another has made the group
        store = dist.distributed_c10d._get_default_store()
        begin_signs(store, dist.get_rank(), dist.get_world_size(), timeout or DEFAULT_TIMEOUT)
    return ProcessGroupComm(timeout=timeout)


def _meet(timeout: float) -> tuple[Any, int, int]:
    """A store that this process reached, its rank there and the number of all."""
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except (RuntimeError, ValueError, OverflowError) as error:
        raise CommunicationError(
            f"a process did not come: the place to meet cannot be reached (timeout {timeout:g} s; "
            f"{first_line(error)}); look at the output of every process"
        ) from None
    return store, rank, size


def _make_group(store: Any, signs: Signs, backend: str | None) -> None:
    seconds = timedelta(seconds=signs.timeout - grace_seconds(signs.timeout))
    options = {"store": store, "rank": signs.rank, "world_size": signs.size, "timeout": seconds}
    try:
        store.set_timeout(seconds)
        dist.init_process_group(backend, **options)
    except RuntimeError as error:
        raise named_failure("the start of the group", error) or error from None


def gather_bytes(
    data: bytes, comm: Comm | None = None, what: str = "the gathering of results"
) -> list[bytes]:
    """The data of every rank, in rank order, on every rank.

    Args:
        data: of this rank, of any length.
        comm: the ranks; where absent all processes, joined by gloo if they are not yet.
        what: what an error calls it.

    Raises:
        CommunicationError: a rank does not answer in time.
    """
    if comm is None:
        comm = join_world(backend="gloo")
    comm.meet(what)
    each = (1,) * comm.size
    lengths = torch.full((comm.size,), len(data), device=comm.device)
    counts = comm.exchange(lengths, SplitSizes(send=each, receive=each, what=what)).wait().tolist()
    own = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).to(comm.device)
    sizes = SplitSizes(send=(len(data),) * comm.size, receive=counts, what=what)
    received = comm.exchange(own.repeat(comm.size), sizes).wait().cpu()
    return [part.numpy().tobytes() for part in torch.split(received, counts)]
