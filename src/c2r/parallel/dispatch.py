"""What every dispatcher has in common: rows go out, sums come back.

`route` agrees with all ranks on how many rows go where; `start_dispatch` sends rows by that `Route`
leg by leg; what it knows in the end is the `Handle`, by which `start_combine` brings sums back over
the same legs. docs/words.md draws one token through all of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from c2r.errors import RoutingError
from c2r.ops import autograd
from c2r.ops.copy_rows import RowCopies
from c2r.parallel.comm import Comm, SplitSizes
from c2r.parallel.pending import Pending
from c2r.parallel.slots import ExpertSlots
from c2r.parallel.wire import Codec, Fp8Codec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExpertRows:
    """Rows of this rank's experts.

    Attributes:
        hidden: `[rows, h]`, ordered by expert, experts in the order of their slots.
        counts: `[local experts]` int64, rows of each.
    """

    hidden: Tensor
    counts: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Leg:
    """One exchange of rows: which are sent to the ranks of `comm`, and how many came.

    Attributes:
        comm: the ranks that take part.
        departing: the rows sent, as copies of the rows that were here.
        send: rows sent to each rank.
        receive: rows received from each rank.
        side_bytes_sent: bytes of ids, weights and counts sent besides, to all ranks.
    """

    comm: Comm
    departing: RowCopies
    send: tuple[int, ...]
    receive: tuple[int, ...]
    side_bytes_sent: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Handle:
    """How the rows of one dispatch travelled; `combine` takes them back the same way.

    Attributes:
        num_ranks: ranks in all.
        legs: exchanges of rows, in the order of the way out.
        arriving: the expert rows as copies of the rows that arrived.
        counts: `[local experts]` int64, expert rows of each.
        weights: `[pairs]` routing weights in the order of the members of `arriving`, or, where
            they are applied at the source, of the copies that departed.
    """

    num_ranks: int
    legs: tuple[Leg, ...]
    arriving: RowCopies
    counts: Tensor
    weights: Tensor

    @property
    def num_rows_sent(self) -> tuple[int, ...]:
        """Rows of this rank that went to each rank, itself included, over all legs."""
        rows = [0] * self.num_ranks
        for leg in self.legs:
            for member, count in zip(leg.comm.members, leg.send, strict=True):
                rows[member] += count
        return tuple(rows)

    @property
    def side_bytes_sent(self) -> int:
        """Bytes sent besides the rows, this rank's own share included."""
        return sum(leg.side_bytes_sent for leg in self.legs)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Route:
    """A dispatch on whose sizes the ranks are agreeing.

    In three parts, for each is known later than the one before, and work can start with each.

    Attributes:
        departing: the rows to send as copies of the tokens, those that stay behind at the end; in
            k-fold dispatch known before the ranks have agreed, so that rows are copied meanwhile.
        first_leg: how many of them go where.
        handle: which experts the rows that arrive have chosen.
    """

    departing: Pending[RowCopies]
    first_leg: Pending[Leg]
    handle: Pending[Handle]


class Dispatcher(ABC):
    """Brings rows to the experts that the router chose, and their weighted sums back.

    Every rank calls the methods of its own dispatcher in the same order. Results do not depend on
    the order of arrival: they are bitwise the same every time.

    Args:
        comm: the ranks.
        slots: which expert lives where.
        dispatch_dtype: type of the rows on the way; their own where absent. With a float8 type
            only the way to the experts is narrowed, otherwise the way back as well.
        layer: what errors call the layer.
    """

    def __init__(
        self,
        comm: Comm,
        slots: ExpertSlots,
        dispatch_dtype: torch.dtype | None = None,
        layer: str = "the layer",
    ) -> None:
        self.comm = comm
        self.slots = slots
        self.dispatch_dtype = dispatch_dtype
        self.layer = layer
        self.observer: Callable[[Handle], None] | None = None
        """Told of every dispatch of `parallel_moe`."""

    def dispatch(
        self, hidden: Tensor, expert_ids: Tensor, weights: Tensor
    ) -> tuple[ExpertRows, Handle]:
        """Sends tokens to their experts.

        Args:
            hidden: `[tokens, h]` of this rank.
            expert_ids: `[tokens, k]` int64; -1 for none.
            weights: `[tokens, k]` floats.

        Returns:
            The rows of this rank's experts, and what `combine` needs.

        Raises:
            RoutingError: an expert id of any rank is out of range.
            CommunicationError: a rank does not answer.
        """
        (route,) = self.route(expert_ids, weights, [len(expert_ids)])
        pending = self.start_sending(self.rows_to_send(hidden, route), route)
        handle = route.handle.wait()  # index work, while the rows travel
        return self.expert_rows(pending.wait(), handle), handle

    def combine(self, expert_output: Tensor, handle: Handle) -> Tensor:
        """`[tokens, h]`: the weighted sum of the outputs of each token's experts.

        Args:
            expert_output: `[rows, h]` for the rows that `dispatch` gave.
            handle: from that dispatch.
        """
        rows = self.rows_to_return(expert_output, handle)
        return self.token_rows(self.start_returning(rows, handle).wait(), handle)

    @abstractmethod
    def route(self, expert_ids: Tensor, weights: Tensor, sizes: Sequence[int]) -> list[Route]:
        """Starts to agree with all ranks on who sends how much, for several chunks at once.

        All counts travel in one exchange, so that all chunks cost one wait for the device.

        Args:
            expert_ids: `[tokens, k]` int64; -1 for none.
            weights: `[tokens, k]` floats.
            sizes: tokens of each chunk.

        Raises:
            RoutingError: here or on waiting: an expert id of any rank is out of range.
            CommunicationError: here or on waiting: a rank does not answer.
        """

    def rows_to_send(self, hidden: Tensor, route: Route) -> Tensor:
        """The rows of `hidden` `[tokens, h]` that leave, as often as they are sent."""
        return autograd.copy_rows(hidden, route.departing.wait())

    def start_sending(self, rows: Tensor, route: Route) -> Pending[Tensor]:
        """Starts the way to the experts; legs after the first start when waited for."""
        first = route.first_leg.wait()
        pending = self.send_rows(_first_rows(rows, sum(first.send)), first)

        def arrive() -> Tensor:
            rows = pending.wait()
            for leg in route.handle.wait().legs[1:]:
                rows = self.send_rows(autograd.copy_rows(rows, leg.departing), leg).wait()
            return rows

        return Pending(arrive)

    def expert_rows(self, arrived: Tensor, handle: Handle) -> ExpertRows:
        """What arrived, copied into the order of this rank's experts."""
        hidden = autograd.copy_rows(arrived, handle.arriving)
        return ExpertRows(hidden=hidden, counts=handle.counts)

    def rows_to_return(self, expert_output: Tensor, handle: Handle) -> Tensor:
        """One row for each that arrived, of expert rows `[rows, h]`."""
        return autograd.sum_copies(expert_output, handle.arriving, handle.weights)

    def start_returning(self, rows: Tensor, handle: Handle) -> Pending[Tensor]:
        """Starts the way back; all legs but the last are over when it returns."""
        first, *others = handle.legs
        for leg in reversed(others):
            rows = autograd.sum_copies(self.return_rows(rows, leg).wait(), leg.departing)
        return self.return_rows(rows, first)

    def token_rows(self, returned: Tensor, handle: Handle) -> Tensor:
        """`[tokens, h]`, the sums of what came back."""
        return autograd.sum_copies(returned, handle.legs[0].departing)

    def exchange_counts(self, comm: Comm, counts: Tensor) -> Pending[tuple[Any, Any, Tensor]]:
        """Starts sending `counts` `[ranks, ...]`, a row to each rank.

        Gives those sent and those received as nested lists, and those received as a tensor.
        """
        each = (1,) * comm.size
        pending = comm.exchange(counts, self.split_sizes(each, each, "counts"))

        def arrive() -> tuple[Any, Any, Tensor]:
            received = pending.wait()
            # The only read back to the host in a dispatch: both tables in one copy, one wait.
            sent_list, received_list = torch.stack([counts, received]).tolist()
            return sent_list, received_list, received

        return Pending(arrive)

    def split_sizes(self, send: Sequence[int], receive: Sequence[int], what: str) -> SplitSizes:
        """Sizes that errors call by this layer's name."""
        return SplitSizes(
            send=send, receive=receive, what=f"the exchange of {what} of {self.layer}"
        )

    def send_rows(self, rows: Tensor, leg: Leg) -> Pending[Tensor]:
        """Starts the way to the experts, as narrow as asked."""
        sizes = self.split_sizes(leg.send, leg.receive, "rows")
        if self.dispatch_dtype is None:
            return leg.comm.exchange(rows, sizes)
        if self.dispatch_dtype.itemsize == 1:
            return leg.comm.exchange(rows, sizes, _FP8)
        pending = leg.comm.exchange(rows.to(self.dispatch_dtype), sizes)
        return Pending(lambda: pending.wait().to(rows.dtype))

    def return_rows(self, rows: Tensor, leg: Leg) -> Pending[Tensor]:
        """Starts the way back."""
        sizes = self.split_sizes(leg.receive, leg.send, "results")
        if self.dispatch_dtype is None or self.dispatch_dtype.itemsize == 1:
            return leg.comm.exchange(rows, sizes)
        pending = leg.comm.exchange(rows.to(self.dispatch_dtype), sizes)
        return Pending(lambda: pending.wait().to(rows.dtype))

    def complaint(self, num_invalid: Tensor) -> Tensor:
        """One number that tells the others how many ids of this rank are out of range.

        It travels with the counts: so all ranks raise together, and none waits for another forever.
        """
        # Two digits to the base of the size. The largest number is that of the rank with most
        # invalid ids, and `divmod` in `check` gives both. Without any it is below the size.
        return num_invalid * self.comm.size + self.comm.rank

    def check(self, complaints: Iterable[int]) -> None:
        """Raises `RoutingError` if a rank complains; all ranks have heard it by now."""
        num_invalid, rank = divmod(max(complaints), self.comm.size)
        if num_invalid:
            raise RoutingError(
                f"rank {rank} chose {num_invalid} expert ids out of range in {self.layer}; ids go "
                f"from 0 to {self.slots.num_experts - 1}, or are -1 for none"
            )


def chunk_of_pairs(pairs: Tensor, sizes: Sequence[int]) -> Tensor:
    """`[pairs]` int64, the chunk of each of `pairs`, of which each chunk has `sizes`."""
    # Filled part by part: a list of sizes would have to travel to the device.
    return torch.cat([pairs.new_full((size,), chunk) for chunk, size in enumerate(sizes)])


def _first_rows(rows: Tensor, count: int) -> Tensor:
    """Without a node in the graph where it is all of them: its backward would copy every row."""
    return rows if count == len(rows) else rows[:count]


_FP8: Codec = Fp8Codec()
