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
from c2r.parallel.faults import failure_of, grace_seconds, missing_ranks, no_answer
from c2r.parallel.pending import Pending
from c2r.parallel.signs import DEFAULT_TIMEOUT, world_signs
from c2r.parallel.wire import RAW, Codec, TaggedCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSizes:
    """How an exchange of rows is split over the ranks, as `torch.distributed` calls it.

    Attributes:
        send: `[ranks]` rows that go to each rank.
        receive: `[ranks]` rows that come from each rank.
        what: what an error calls these rows.
    """

    send: Sequence[int]
    receive: Sequence[int]
    what: str

    @property
    def reversed(self) -> "SplitSizes":
        """Those of the gradients, which travel the other way."""
        return SplitSizes(send=self.receive, receive=self.send, what=f"backward of {self.what}")


class Comm(Protocol):
    """A group of ranks, seen from one of them.

    Attributes:
        rank: number of this one in the group.
        size: ranks in the group.
        members: the ranks of the group, as numbered in the group that it is a part of.
        device: where the rows live.
    """

    rank: int
    size: int
    members: tuple[int, ...]
    device: torch.device

    def exchange(self, rows: Tensor, sizes: SplitSizes, codec: Codec = RAW) -> Pending[Tensor]:
        """Starts sending `rows`, grouped by receiving rank; gives those received, by sender.

        Args:
            rows: `[sum(sizes.send), ...]`.
            sizes: how many rows go to and come from each rank.
            codec: what rows look like on the way there; gradients travel back as they are.

        Raises:
            CommunicationError: on waiting, if a rank does not answer in time.
        """
        ...

    def exchange_tagged(
        self, values: Tensor, tags: Tensor, sizes: SplitSizes
    ) -> Pending[tuple[Tensor, Tensor]]:
        """Exchanges `values` `[n]` floats and `tags` `[n]` int16 in one message.

        Gives the values and the tags received, `[sum(sizes.receive)]` each.
        """
        ...

    def all_reduce(self, tensor: Tensor) -> None:
        """Adds up `tensor` over the ranks, in place. Raises `CommunicationError` as `exchange`."""
        ...

    def barrier(self) -> None:
        """Waits until all ranks are here. Raises `CommunicationError` as `exchange`."""
        ...

    def meet(self, what: str) -> None:
        """As `barrier`, for as long as the others give signs of life; errors name `what`."""
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
            the ranks find out who is missing included; that of `join_world`, or 60.

    Where the ranks were joined by `join_world`, their signs of life tell who is missing.
    """

    def __init__(self, group: Any = None, timeout: float | None = None) -> None:
        self.signs = world_signs()
        self.group: Any = group if group is not None else dist.group.WORLD
        self.timeout = timeout or (self.signs.timeout if self.signs else DEFAULT_TIMEOUT)
        self.rank = dist.get_rank(self.group)
        self.size = dist.get_world_size(self.group)
        self.members = tuple(range(self.size))
        self._subsets: dict[tuple[int, ...], ProcessGroupComm] = {}
        on_cpu = dist.get_backend(self.group) == "gloo" or not torch.cuda.is_available()
        self.device = _CPU if on_cpu else torch.device("cuda", torch.cuda.current_device())

    def exchange(self, rows: Tensor, sizes: SplitSizes, codec: Codec = RAW) -> Pending[Tensor]:
        """See `Comm.exchange`."""
        trip = _RoundTrip(
            there=_Exchange(self, sizes, codec), back=_Exchange(self, sizes.reversed, RAW)
        )
        in_flight = _Depart.apply(rows, trip)  # type: ignore[no-untyped-call]
        return Pending(lambda: _Arrive.apply(in_flight, trip))  # type: ignore[no-untyped-call]

    def exchange_tagged(
        self, values: Tensor, tags: Tensor, sizes: SplitSizes
    ) -> Pending[tuple[Tensor, Tensor]]:
        """See `Comm.exchange_tagged`."""
        received_tags = tags.new_empty(sum(sizes.receive))
        pending = self.exchange(values, sizes, TaggedCodec(send=tags, receive=received_tags))

        def arrive() -> tuple[Tensor, Tensor]:
            received_values = pending.wait()  # fills `received_tags` as well
            return received_values, received_tags

        return Pending(arrive)

    def all_reduce(self, tensor: Tensor) -> None:
        """See `Comm.all_reduce`."""
        self._complete(dist.all_reduce, tensor, what="the sum over ranks")

    def barrier(self) -> None:
        """See `Comm.barrier`."""
        self._complete(dist.barrier, what="the barrier")

    def meet(self, what: str) -> None:
        """See `Comm.meet`."""
        if self.signs is not None and self.group is dist.group.WORLD:
            self.signs.meet(what)
        else:
            self._complete(dist.barrier, what=what)

    def subset(self, members: Sequence[int]) -> "ProcessGroupComm":
        """See `Comm.subset`; asked again for the same ranks, the same group."""
        key = tuple(members)
        if key not in self._subsets:
            ranks = [dist.get_global_rank(self.group, rank) for rank in members]
            seconds = timedelta(seconds=self.timeout)
            with self._naming_who_is_missing("the start of a group"):
                group = dist.new_group(ranks, timeout=seconds, use_local_synchronization=True)
            self._subsets[key] = ProcessGroupComm(group, self.timeout)
            self._subsets[key].members = key
        return self._subsets[key]

    def start(self, sent: Tensor, received: Tensor, sizes: SplitSizes) -> Any:
        """Starts one exchange of raw rows; gives the work to `finish`."""
        parts = list(sizes.receive), list(sizes.send)
        with self._naming_who_is_missing(sizes.what):
            return dist.all_to_all_single(
                received, sent.contiguous(), *parts, group=self.group, async_op=True
            )

    def finish(self, work: Any, sizes: SplitSizes) -> None:
        """Waits for the exchange. Raises `CommunicationError` if a rank does not answer."""
        with self._naming_who_is_missing(sizes.what):
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
        if self.signs is not None:
            members = dist.get_process_group_ranks(self.group)
            return failure_of(self.signs, what, members, self.timeout, error)
        missing = missing_ranks(self.group, what, self.timeout)
        return no_answer(missing, self.rank, what, self.timeout, error)


class _Exchange:
    """One exchange of rows, between `start` and `finish` in flight."""

    def __init__(self, comm: ProcessGroupComm, sizes: SplitSizes, codec: Codec) -> None:
        self._comm, self._sizes, self._codec = comm, sizes, codec
        self._in_flight: tuple[Any, Tensor, Tensor] | None = None

    def start(self, rows: Tensor) -> Tensor:
        """Starts sending; gives the tensor that `finish` will have filled."""
        sent = self._codec.encode(rows)
        arriving = rows.new_empty(sum(self._sizes.receive), *rows.shape[1:])
        wire = arriving
        if sent is not rows:
            wire = sent.new_empty(len(arriving), *sent.shape[1:])
        self._in_flight = self._comm.start(sent, wire, self._sizes), wire, arriving
        return arriving

    def finish(self) -> Tensor:
        """Waits; gives what was received."""
        assert self._in_flight is not None, "the exchange was started"
        work, wire, arriving = self._in_flight
        # The work holds the tensors, one of which leads back here through the autograd graph: a
        # cycle through C++ that Python's collector does not see (44 MB leaked at every step).
        self._in_flight = None
        self._comm.finish(work, self._sizes)
        if wire is not arriving:
            self._codec.decode(wire, arriving)
        return arriving


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _RoundTrip:
    """An exchange of rows, and the opposite one of their gradients."""

    there: _Exchange
    back: _Exchange


# Two autograd functions make one exchange, so that other work runs between start and wait, forward
# and backward. Backward runs them in the opposite order: `_Arrive` starts, `_Depart` waits.


class _Depart(torch.autograd.Function):
    """Starts the exchange; its backward waits for the one that `_Arrive.backward` started."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, trip: _RoundTrip) -> Tensor:
        ctx.trip = trip
        return trip.there.start(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # `grad` is not looked at: it only made autograd run `_Arrive.backward` first.
        return ctx.trip.back.finish(), None


class _Arrive(torch.autograd.Function):
    """Waits for the exchange; its backward starts the opposite one."""

    @staticmethod
    def forward(ctx: Any, arriving: Tensor, trip: _RoundTrip) -> Tensor:
        ctx.trip = trip
        return trip.there.finish()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Autograd wants a gradient of the shape of `arriving`. What travels back has the length of
        # what was sent, so it is handed over in `trip.back`, and any tensor of the shape will do.
        ctx.trip.back.start(grad.contiguous())
        return grad, None
