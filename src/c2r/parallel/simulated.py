"""Ranks that are threads of one process, for tests.

Exchanges are slices and concatenations of the ranks' own tensors: autograd runs through all ranks
at once, so that one backward pass of the summed losses serves them all.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from c2r.parallel.comm import Comm, SplitSizes
from c2r.parallel.pending import Pending
from c2r.parallel.wire import RAW, Codec

T = TypeVar("T")
_TIMEOUT_SECONDS = 60  # far beyond any test; ends one whose ranks wait for each other


class _Meeting:
    """Where the ranks of one group lay down what they send and take what is theirs."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=_TIMEOUT_SECONDS)
        self.table: list[Any] = [None] * size

    def trade(self, rank: int, parcels: Sequence[Any]) -> list[Any]:
        """Lays down a parcel for each rank; gives those for this one, by sender."""
        self.table[rank] = parcels
        self.barrier.wait()  # all have laid down
        received = [parcels[rank] for parcels in self.table]
        self.barrier.wait()  # all have taken, so that the table may be overwritten
        return received


class SimulatedComm:
    """One of several threads of this process that act as ranks; `simulate` makes them."""

    device = torch.device("cpu")

    def __init__(self, rank: int, members: tuple[int, ...], meetings: dict[Any, _Meeting]) -> None:
        self.members = members
        self.rank, self.size = members.index(rank), len(members)
        self._world_rank = rank
        self._meetings = meetings

    def exchange(self, rows: Tensor, sizes: SplitSizes, codec: Codec = RAW) -> Pending[Tensor]:
        """See `Comm.exchange`; nothing is under way when it returns."""
        wire = codec.encode(rows)
        if wire is not rows:
            seen = torch.empty_like(rows)
            codec.decode(wire.detach(), seen)
            # Values of the wire, gradients of the rows: those travel unrounded in a real exchange.
            rows = rows + (seen - rows).detach()
        received = torch.cat(self._trade(torch.split(rows, list(sizes.send))))
        assert len(received) == sum(sizes.receive), sizes.what
        return Pending.of(received)

    def exchange_tagged(
        self, values: Tensor, tags: Tensor, sizes: SplitSizes
    ) -> Pending[tuple[Tensor, Tensor]]:
        """See `Comm.exchange_tagged`."""
        received = (
            self.exchange(values, sizes).wait(),
            self.exchange(tags, sizes).wait(),
        )
        return Pending.of(received)

    def all_reduce(self, tensor: Tensor) -> None:
        """See `Comm.all_reduce`."""
        tensor.copy_(torch.stack(self._trade([tensor.clone()] * self.size)).sum(0))

    def barrier(self) -> None:
        """See `Comm.barrier`."""
        self._trade([None] * self.size)

    def meet(self, what: str) -> None:
        """See `Comm.meet`."""
        self.barrier()

    def subset(self, members: Sequence[int]) -> "SimulatedComm":
        """See `Comm.subset`."""
        return SimulatedComm(self._world_rank, tuple(members), self._meetings)

    def _trade(self, parcels: Sequence[Any]) -> list[Any]:
        return self._meetings.setdefault(self.members, _Meeting(self.size)).trade(
            self.rank, parcels
        )


def simulate(num_ranks: int, run: Callable[[Comm], T]) -> list[T]:
    """Runs `run(comm)` as every one of `num_ranks` ranks; gives the results in rank order.

    An error of one rank stops the others and is raised.
    """
    meetings: dict[Any, _Meeting] = {}
    members = tuple(range(num_ranks))
    results: list[Any] = [None] * num_ranks
    errors: list[BaseException] = []
    is_grad_enabled = torch.is_grad_enabled()

    def work(rank: int) -> None:
        try:
            with torch.set_grad_enabled(is_grad_enabled):
                results[rank] = run(SimulatedComm(rank, members, meetings))
        except BaseException as error:  # noqa: BLE001  raised below, in the caller's thread
            errors.append(error)
            for meeting in meetings.values():
                meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A broken barrier is the echo of another rank's error: that one comes first.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results
