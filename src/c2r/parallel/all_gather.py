"""Every token to every rank, partial sums back: right where there are few tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from c2r.ops.copy_rows import copies_of
from c2r.ops.dispatch_layout import sort_by_expert
from c2r.parallel.dispatch import Dispatcher, Handle, Leg, Route
from c2r.parallel.pending import Pending


class AllGatherDispatcher(Dispatcher):
    """Every token to every rank, and a row back from each, summed in rank order."""

    def route(self, expert_ids: Tensor, weights: Tensor, sizes: Sequence[int]) -> list[Route]:
        """See `Dispatcher.route`."""
        size = self.comm.size
        slots, num_invalid = self.slots.choose(expert_ids)
        complaint = self.complaint(num_invalid)
        counts = torch.stack([complaint.new_tensor(count) for count in sizes])
        table = torch.stack([counts, complaint.expand_as(counts)], dim=1)
        _, received, _ = self.exchange_counts(self.comm, table.expand(size, -1, -1)).wait()
        self.check(chunk[1] for rank in received for chunk in rank)
        ids_split, weights_split = (
            torch.split(values, list(sizes)) for values in (slots.view_as(expert_ids), weights)
        )
        return [
            self._route(ids, chunk_weights, [rank[index][0] for rank in received])
            for index, (ids, chunk_weights) in enumerate(zip(ids_split, weights_split, strict=True))
        ]

    def _route(self, slots: Tensor, weights: Tensor, num_tokens: list[int]) -> Route:
        """Starts sending slots and weights `[tokens, k]` of one chunk to every rank.

        `num_tokens` `[ranks]` are the tokens of each rank, so that what arrives needs no row
        numbers: every row comes with exactly k pairs.
        """
        (num_own, k), size = slots.shape, self.comm.size
        tokens = torch.arange(num_own, device=slots.device)
        leg = Leg(
            comm=self.comm,
            departing=copies_of(tokens.repeat(size), num_own),
            send=(num_own,) * size,
            receive=tuple(num_tokens),
            # An int16 slot and a weight for each pair, and two int64 counts.
            side_bytes_sent=size * (num_own * k * (2 + weights.itemsize) + 16),
        )
        choices = self.comm.exchange_tagged(
            weights.repeat(size, 1).flatten(),
            slots.repeat(size, 1).to(torch.int16).flatten(),
            self.split_sizes([num_own * k] * size, [n * k for n in num_tokens], "choices"),
        )
        return Route(
            departing=Pending.of(leg.departing),
            first_leg=Pending.of(leg),
            handle=Pending(lambda: self._handle(leg, k, *choices.wait())),
        )

    def _handle(self, leg: Leg, k: int, weights: Tensor, slots: Tensor) -> Handle:
        """Of all pairs that arrived, `[rows * k]`, those whose slot is on this rank."""
        most, rank = self.slots.max_per_rank, self.comm.rank
        (is_here,) = torch.where(slots // most == rank)
        arriving, counts = sort_by_expert(
            is_here // k,
            slots[is_here].long() % most,
            sum(leg.receive),
            self.slots.num_on_rank[rank],
        )
        return Handle(
            num_ranks=self.comm.size,
            legs=(leg,),
            arriving=arriving,
            counts=counts,
            weights=weights[is_here],
        )
