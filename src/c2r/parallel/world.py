"""All processes that torchrun started, as one group."""

import time
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from c2r.errors import CommunicationError
from c2r.parallel.comm import Comm, ProcessGroupComm, SplitSizes
from c2r.parallel.faults import first_line

_LONG_SECONDS = 1800.0  # One process may profile or write a model while the others wait.


def join_world(timeout: float = _LONG_SECONDS, backend: str | None = None) -> ProcessGroupComm:
    """All processes that torchrun started; the first call joins them, later ones find them joined.

    Args:
        timeout: seconds after which a process that does not come, or does not answer the group
            that this gives, is an error. torch's own use of the processes has half an hour.
        backend: of torch's, for the first call; torch's choice for the machine where absent.

    Raises:
        CommunicationError: not all processes come in time.
    """
    if not dist.is_initialized():
        store, rank, size = _meet(timeout)
        store.set_timeout(timedelta(seconds=_LONG_SECONDS))
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=_LONG_SECONDS),
        )
    return ProcessGroupComm(timeout=timeout)


def _meet(timeout: float) -> tuple[Any, int, int]:
    """A store that all processes reached, this one's rank in it and their number."""
    deadline = time.monotonic() + timeout
    absent = "a process"
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        store.set(f"c2r/came/{rank}", "")
        for other in range(size):
            absent = f"rank {other} of {size}"
            left = max(deadline - time.monotonic(), 0.001)
            store.wait([f"c2r/came/{other}"], timedelta(seconds=left))
    except RuntimeError as error:
        raise CommunicationError(
            f"{absent} did not come (timeout {timeout:g} s; {first_line(error)}); look at the "
            "output of every process"
        ) from None
    return store, rank, size


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
    each = (1,) * comm.size
    lengths = torch.full((comm.size,), len(data), device=comm.device)
    counts = comm.exchange(lengths, SplitSizes(send=each, receive=each, what=what)).wait().tolist()
    own = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).to(comm.device)
    sizes = SplitSizes(send=(len(data),) * comm.size, receive=counts, what=what)
    received = comm.exchange(own.repeat(comm.size), sizes).wait().cpu()
    return [part.numpy().tobytes() for part in torch.split(received, counts)]
