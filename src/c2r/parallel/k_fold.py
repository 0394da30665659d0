"""One row per (token, expert) both ways, as MegaBlocks dispatches: the baseline.

Its design is kept: rows are sorted by expert so that counts alone tell what arrived, the counts
travel while rows are copied, weights are applied at the source. It is as fast as that allows: one
wait for the device instead of two, and an order computed from the counts instead of a second sort.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from c2r.ops.dispatch_layout import expert_major, inverse, one_row_per_pair
from c2r.ops.permute import Copies
from c2r.parallel.autograd import copied, summed
from c2r.parallel.dispatch import Dispatcher, ExpertRows, Handle, Leg
from c2r.parallel.pending import Pending


class KFoldDispatcher(Dispatcher):
    """One row per (token, expert) both ways; weights are applied at the source."""

    def route(self, expert_ids: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Handle]:
        """See `Dispatcher.route`."""
        num_slots = self.slots.num_ranks * self.slots.max_per_rank
        orders, counts = [], []
        for ids in expert_ids:
            flat, num_invalid = self.slots.none_where_invalid(ids)
            order, per_slot = one_row_per_pair(self.slots.slot_of[flat], num_slots)
            per_rank = per_slot.view(self.slots.num_ranks, -1)
            orders.append(order)
            counts.append(
                torch.cat([per_rank, self.complaint(num_invalid).expand(len(per_rank), 1)], dim=1)
            )
        sent, received, table = self.exchange_counts(self.comm, torch.stack(counts, dim=1))
        self.check(chunk[-1] for rank in received for chunk in rank)
        return [
            self._handle(
                (orders[chunk], weights[chunk]),
                [sum(rank[chunk][:-1]) for rank in sent],
                [sum(rank[chunk][:-1]) for rank in received],
                table[:, chunk, :-1],
            )
            for chunk in range(len(orders))
        ]

    def _handle(
        self,
        chosen: tuple[Tensor, Tensor],
        send: list[int],
        receive: list[int],
        counts: Tensor,
    ) -> Handle:
        order, weights = chosen
        num_tokens, k = weights.shape
        num_sent = sum(send)
        members, flat = inverse(order), weights.reshape(-1)
        starts = torch.arange(num_tokens, device=order.device) * k
        if num_sent < len(order):
            is_sent = members < num_sent
            per_token = is_sent.view(num_tokens, k).sum(1)
            starts = per_token.cumsum(0) - per_token
            members, flat = members[is_sent], flat[is_sent]
        departing = Copies(source=order[:num_sent] // k, members=members, starts=starts)
        regroup = expert_major(counts, sum(receive))
        return Handle(
            num_ranks=self.comm.size,
            legs=(
                Leg(
                    comm=self.comm,
                    departing=departing,
                    send=tuple(send),
                    receive=tuple(receive),
                    side_bytes_sent=8 * (counts.numel() + len(counts)),
                ),
            ),
            arriving=Copies(
                source=regroup,
                members=inverse(regroup),
                starts=torch.arange(len(regroup), device=order.device),
                is_permutation=True,
            ),
            counts=counts.sum(0)[: self.slots.num_on_rank[self.comm.rank]],
            weights=flat,
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
        pending = self.return_rows(summed(expert_output, handle.arriving), leg)
        return Pending(lambda: summed(pending.wait(), leg.departing, handle.weights))
