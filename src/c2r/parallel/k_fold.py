"""One row per (token, expert) both ways, as MegaBlocks dispatches: the baseline.

Its design is kept: rows are sorted by expert so that counts alone tell what arrived, the counts
travel while rows are copied, the order of arrival is worked out while rows travel, and weights are
applied at the source. It is as fast as that allows: one wait for the device instead of two, an
order computed from the counts instead of a second sort, one pass for the weighted sums.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.ops import autograd
from c2r.ops.copy_rows import RowCopies
from c2r.ops.dispatch_layout import expert_major, inverse, one_row_per_pair
from c2r.parallel.dispatch import Dispatcher, Handle, Leg, Route
from c2r.parallel.pending import Pending


class KFoldDispatcher(Dispatcher):
    """One row per (token, expert) both ways; weights are applied at the source."""

    def route(self, expert_ids: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Route]:
        """See `Dispatcher.route`."""
        departing, counts = [], []
        for ids in expert_ids:
            slots, num_invalid = self.slots.choose(ids)
            order, per_slot = one_row_per_pair(slots, self.slots.num_slots)
            num_tokens, k = ids.shape
            # Every token has k copies, none counted: no sort and no histogram over tokens.
            starts = torch.arange(num_tokens, device=order.device) * k
            departing.append(RowCopies(source=order // k, members=inverse(order), starts=starts))
            per_rank = per_slot.view(self.slots.num_ranks, -1)
            complaint = self.complaint(num_invalid).expand(self.slots.num_ranks, 1)
            counts.append(torch.cat([per_rank, complaint], dim=1))
        agreed = self.exchange_counts(self.comm, torch.stack(counts, dim=1))
        routes = []
        for chunk, copies in enumerate(departing):
            leg = Pending(partial(self._leg, agreed, chunk, copies))
            handle = Pending(partial(self._handle, agreed, chunk, leg, weights[chunk].reshape(-1)))
            routes.append(Route(departing=copies, first_leg=leg, handle=handle))
        return routes

    def _leg(self, agreed: Pending[tuple[Any, Any, Tensor]], chunk: int, copies: RowCopies) -> Leg:
        """How many rows go where, once all ranks' counts `[ranks, chunks, slots + 1]` are here."""
        sent, received, table = agreed.wait()
        self.check(part[-1] for rank in received for part in rank)
        return Leg(
            comm=self.comm,
            departing=copies,
            send=tuple(sum(rank[chunk][:-1]) for rank in sent),
            receive=tuple(sum(rank[chunk][:-1]) for rank in received),
            side_bytes_sent=table[:, chunk].nbytes,
        )

    def _handle(
        self,
        agreed: Pending[tuple[Any, Any, Tensor]],
        chunk: int,
        leg: Pending[Leg],
        weights: Tensor,
    ) -> Handle:
        """The order by expert of rows that arrive by rank, from their counts alone."""
        counts = agreed.wait()[2][:, chunk, :-1]
        regroup = expert_major(counts, sum(leg.wait().receive))
        return Handle(
            num_ranks=self.comm.size,
            legs=(leg.wait(),),
            arriving=RowCopies(
                source=regroup,
                members=inverse(regroup),
                starts=torch.arange(len(regroup), device=regroup.device),
                is_permutation=True,
            ),
            counts=counts.sum(0)[: self.slots.num_on_rank[self.comm.rank]],
            weights=weights,
        )

    def start_combine(self, expert_output: Tensor, handle: Handle) -> Pending[Tensor]:
        """See `Dispatcher.start_combine`."""
        (leg,) = handle.legs
        pending = self.return_rows(autograd.sum_copies(expert_output, handle.arriving), leg)
        # Pairs without an expert have a copy that never left; zeros stand in for what they sum.
        num_behind = len(leg.departing.source) - sum(leg.send)

        def arrive() -> Tensor:
            rows = pending.wait()
            rows = F.pad(rows, (0, 0, 0, num_behind)) if num_behind else rows
            return autograd.sum_copies(rows, leg.departing, handle.weights)

        return Pending(arrive)
