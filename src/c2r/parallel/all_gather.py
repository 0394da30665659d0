"""Every token to every rank, partial sums back: right where there are few tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from c2r.ops.dispatch_layout import sort_by_expert
from c2r.ops.permute import copies_of
from c2r.parallel.autograd import copied, summed
from c2r.parallel.dispatch import Dispatcher, ExpertRows, Handle, Leg
from c2r.parallel.pending import Pending


class AllGatherDispatcher(Dispatcher):
    """Every token to every rank, and a row back from each, summed in rank order."""

    def route(self, expert_ids: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Handle]:
        """See `Dispatcher.route`."""
        size = self.comm.size
        checked = [self.slots.none_where_invalid(ids) for ids in expert_ids]
        counts = [
            torch.stack([num_invalid.new_tensor(len(ids)), self.complaint(num_invalid)])
            for ids, (_, num_invalid) in zip(expert_ids, checked, strict=True)
        ]
        _, received, _ = self.exchange_counts(self.comm, torch.stack(counts).expand(size, -1, -1))
        self.check(chunk[1] for rank in received for chunk in rank)
        return [
            self._handle(flat.view_as(ids), chunk_weights, [rank[index][0] for rank in received])
            for index, (ids, (flat, _), chunk_weights) in enumerate(
                zip(expert_ids, checked, weights, strict=True)
            )
        ]

    def _handle(self, expert_ids: Tensor, weights: Tensor, num_tokens: list[int]) -> Handle:
        (num_own, k), size = expert_ids.shape, self.comm.size
        send = (num_own,) * size
        slots = self.slots.slot_of[expert_ids].repeat(size, 1).to(torch.int16)
        all_weights, all_slots = self.comm.exchange_tagged(
            weights.repeat(size, 1).flatten(),
            slots.flatten(),
            self.journey([n * k for n in send], [n * k for n in num_tokens], "choices"),
        ).wait()
        most, num_local = self.slots.max_per_rank, self.slots.num_on_rank[self.comm.rank]
        (is_here,) = torch.where(all_slots // most == self.comm.rank)
        arriving, counts = sort_by_expert(
            is_here // k, all_slots[is_here].long() % most, sum(num_tokens), num_local
        )
        tokens = torch.arange(num_own, device=expert_ids.device)
        return Handle(
            num_ranks=size,
            legs=(
                Leg(
                    comm=self.comm,
                    departing=copies_of(tokens.repeat(size), num_own),
                    send=send,
                    receive=tuple(num_tokens),
                    side_bytes_sent=size * (num_own * k * (2 + weights.itemsize) + 16),
                ),
            ),
            arriving=arriving,
            counts=counts,
            weights=all_weights[is_here],
        )

    def start_dispatch(self, hidden: Tensor, handle: Handle) -> Pending[ExpertRows]:
        """See `Dispatcher.start_dispatch`."""
        (leg,) = handle.legs
        pending = self.send_rows(copied(hidden, leg.departing), leg)
        return Pending(
            lambda: ExpertRows(hidden=copied(pending.wait(), handle.arriving), counts=handle.counts)
        )

    def start_combine(self, expert_output: Tensor, handle: Handle) -> Pending[Tensor]:
        """See `Dispatcher.start_combine`."""
        (leg,) = handle.legs
        pending = self.return_rows(summed(expert_output, handle.arriving, handle.weights), leg)
        return Pending(lambda: summed(pending.wait(), leg.departing))
