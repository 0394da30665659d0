"""Exchange between the processes that torchrun started; no other room touches torch.distributed.

A `Comm` sends rows of a tensor to every rank and brings those that every rank sent. Exchanges are
differentiable: the backward of one is the opposite exchange. They must be started by all ranks in
the same order, and so must their backwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from c2r.errors import CommunicationError
from c2r.parallel.faults import first_line, grace_seconds, missing_ranks
from c2r.parallel.pending import Pending
from c2r.parallel.wire import RAW, Codec, TaggedCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class Journey:
    """How many rows go to each rank and come from each, and what an error calls them."""

    send: Sequence[int]
    receive: Sequence[int]
    what: str

    @property
    def back(self) -> "Journey":
        """The opposite direction."""
        return Journey(send=self.receive, receive=self.send, what=f"backward of {self.what}")


class Comm(Protocol):
    """A group of ranks, seen from one of them.

    Attributes:
        rank: place of this one in the group.
        size: ranks in the group.
        members: the ranks of the group, as numbered in the group that it is a part of.
        device: where the rows live.
    """

    rank: int
    size: int
    members: tuple[int, ...]
    device: torch.device

    def exchange(self, rows: Tensor, journey: Journey, codec: Codec = RAW) -> Pending[Tensor]:
        """Starts sending `rows`, grouped by receiving rank; gives those received, by sender.

        Args:
            rows: `[sum(journey.send), ...]`.
            journey: how many rows go to and come from each rank.
            codec: what rows look like on the way there; gradients travel back as they are.

        Raises:
            CommunicationError: on waiting, if a rank does not answer in time.
        """
        ...

    def exchange_tagged(
        self, values: Tensor, tags: Tensor, journey: Journey
    ) -> Pending[tuple[Tensor, Tensor]]:
        """Exchanges `values` `[n]` floats and `tags` `[n]` int16 in one message."""
        ...

    def all_reduce(self, tensor: Tensor) -> None:
        """Adds up `tensor` over the ranks, in place. Raises `CommunicationError` as `exchange`."""
        ...

    def barrier(self) -> None:
        """Waits until all ranks are here. Raises `CommunicationError` as `exchange`."""
        ...

    def subset(self, members: Sequence[int]) -> "Comm":
        """The group of some of the ranks, this one among them; every rank must ask for its own."""
        ...


_CPU = torch.device("cpu")


class ProcessGroupComm:
    """The ranks of a torch process group.

    Args:
        group: the group; the default one where absent.
        timeout: seconds after which an exchange that is not answered is an error, those in which
            the ranks find out who is missing included.
    """

    def __init__(self, group: Any = None, timeout: float = 60.0) -> None:
        self.group: Any = group if group is not None else dist.group.WORLD
        self.timeout = timeout
        self.rank = dist.get_rank(self.group)
        self.size = dist.get_world_size(self.group)
        self.members = tuple(range(self.size))
        self._subsets: dict[tuple[int, ...], ProcessGroupComm] = {}
        on_cpu = dist.get_backend(self.group) == "gloo" or not torch.cuda.is_available()
        self.device = _CPU if on_cpu else torch.device("cuda", torch.cuda.current_device())

    def exchange(self, rows: Tensor, journey: Journey, codec: Codec = RAW) -> Pending[Tensor]:
        """See `Comm.exchange`."""
        trip = _Trip(self, journey, codec)
        in_flight = _Depart.apply(rows, trip)  # type: ignore[no-untyped-call]
        return Pending(lambda: _Arrive.apply(in_flight, trip))  # type: ignore[no-untyped-call]

    def exchange_tagged(
        self, values: Tensor, tags: Tensor, journey: Journey
    ) -> Pending[tuple[Tensor, Tensor]]:
        """See `Comm.exchange_tagged`."""
        codec = TaggedCodec(tags)
        pending = self.exchange(values, journey, codec)
        return Pending(lambda: (pending.wait(), codec.received))

    def all_reduce(self, tensor: Tensor) -> None:
        """See `Comm.all_reduce`."""
        self._complete(dist.all_reduce, tensor, what="the sum over ranks")

    def barrier(self) -> None:
        """See `Comm.barrier`."""
        self._complete(dist.barrier, what="the barrier")

    def subset(self, members: Sequence[int]) -> "ProcessGroupComm":
        """See `Comm.subset`; asked again for the same ranks, the same group."""
        key = tuple(members)
        if key not in self._subsets:
            ranks = [dist.get_global_rank(self.group, rank) for rank in members]
            group = dist.new_group(ranks, use_local_synchronization=True)
            self._subsets[key] = ProcessGroupComm(group, self.timeout)
            self._subsets[key].members = key
        return self._subsets[key]

    def start(self, sent: Tensor, received: Tensor, journey: Journey) -> Any:
        """Starts one exchange of raw rows; gives the work to `finish`."""
        parts = list(journey.receive), list(journey.send)
        with self._naming_who_is_missing(journey.what):
            return dist.all_to_all_single(
                received, sent.contiguous(), *parts, group=self.group, async_op=True
            )

    def finish(self, work: Any, journey: Journey) -> None:
        """Waits for the exchange. Raises `CommunicationError` if a rank does not answer."""
        with self._naming_who_is_missing(journey.what):
            self._wait(work)

    def _complete(self, collective: Callable[..., Any], *tensors: Tensor, what: str) -> None:
        with self._naming_who_is_missing(what):
            self._wait(collective(*tensors, group=self.group, async_op=True))

    def _wait(self, work: Any) -> None:
        work.wait(timedelta(seconds=self.timeout - grace_seconds(self.timeout)))

    @contextmanager
    def _naming_who_is_missing(self, what: str) -> Iterator[None]:
        """Turns a failure of torch's in the block into a `CommunicationError`."""
        try:
            yield
        except RuntimeError as error:
            raise self._failure(what, error) from None

    def _failure(self, what: str, error: RuntimeError) -> CommunicationError:
        missing = missing_ranks(self.group, what, self.timeout)
        reason = first_line(error)
        who = f"rank {', '.join(map(str, missing))}" if missing else "a rank"
        return CommunicationError(
            f"{who} did not answer rank {self.rank} in {what} (timeout "
            f"{self.timeout:g} s; {reason}); look at the output of {who}"
        )


class _Trip:
    """One exchange under way; `back` is the opposite one, of its gradients."""

    back: "_Trip"

    def __init__(self, comm: ProcessGroupComm, journey: Journey, codec: Codec) -> None:
        self.comm, self.journey, self.codec = comm, journey, codec
        self.arriving = self.wire = torch.empty(0)
        self.work: Any = None

    def depart(self, rows: Tensor) -> Tensor:
        """Starts sending; gives the tensor that `arrive` will have filled."""
        sent = self.codec.encode(rows)
        self.arriving = rows.new_empty(sum(self.journey.receive), *rows.shape[1:])
        self.wire = self.arriving
        if sent is not rows:
            self.wire = sent.new_empty(len(self.arriving), *sent.shape[1:])
        self.work = self.comm.start(sent, self.wire, self.journey)
        return self.arriving

    def arrive(self) -> Tensor:
        """Waits; gives what was received."""
        self.comm.finish(self.work, self.journey)
        arrived = self.arriving
        if self.wire is not arrived:
            self.codec.decode(self.wire, arrived)
        self.arriving = self.wire = torch.empty(0)
        self.work = None  # it holds the tensors, of which one leads back here through the graph
        return arrived


class _Depart(torch.autograd.Function):
    """Starts the exchange; its backward waits for the one that `_Arrive.backward` started."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        return trip.depart(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.trip.back.arrive(), None


class _Arrive(torch.autograd.Function):
    """Waits for the exchange; its backward starts the opposite one.

    That one's result is as long as what was sent, so it goes to `_Depart` with the trip. What this
    function returns there has the right shape and is not looked at.
    """

    @staticmethod
    def forward(ctx: Any, arriving: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        return trip.arrive()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        trip = ctx.trip
        trip.back = _Trip(trip.comm, trip.journey.back, RAW)
        trip.back.depart(grad.contiguous())
        return grad, None
