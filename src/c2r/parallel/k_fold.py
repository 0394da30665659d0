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
from c2r.parallel.dispatch import Dispatcher, Handle, Leg, Route, chunk_of_pairs
from c2r.parallel.pending import Pending


class KFoldDispatcher(Dispatcher):
    """One row per (token, expert) both ways; weights are applied at the source."""

    def route(self, expert_ids: Tensor, weights: Tensor, sizes: Sequence[int]) -> list[Route]:
        """See `Dispatcher.route`."""
        k, num_ranks = expert_ids.shape[1], self.slots.num_ranks
        num_slots = self.slots.num_slots
        slots, num_invalid = self.slots.choose(expert_ids)
        # One sort for all chunks: by chunk, then by slot, pairs without an expert last.
        num_pairs = [size * k for size in sizes]
        chunks = chunk_of_pairs(slots, num_pairs)
        keys = chunks * (num_slots + 1) + slots
        order, per_key = one_row_per_pair(keys, len(sizes) * (num_slots + 1))
        per_slot = per_key.view(len(sizes), num_slots + 1)[:, :-1]
        per_rank = per_slot.reshape(len(sizes), num_ranks, -1).transpose(0, 1)
        complaint = self.complaint(num_invalid).expand(num_ranks, len(sizes), 1)
        agreed = self.exchange_counts(self.comm, torch.cat([per_rank, complaint], dim=2))
        parts = torch.split(order, num_pairs)
        chunk_weights = torch.split(weights.reshape(-1), num_pairs)
        routes = []
        first_token = 0
        for chunk, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            pairs = part - first_token * k
            first_token += size
            # Every token has k copies, none counted: no sort and no histogram over tokens.
            starts = torch.arange(size, device=order.device) * k
            copies = RowCopies(source=pairs // k, members=inverse(pairs), starts=starts)
            leg = Pending(partial(self._leg, agreed, chunk, copies))
            handle = Pending(partial(self._handle, agreed, chunk, leg, chunk_weights[chunk]))
            routes.append(Route(departing=Pending.of(copies), first_leg=leg, handle=handle))
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

    def rows_to_return(self, expert_output: Tensor, handle: Handle) -> Tensor:
        """See `Dispatcher.rows_to_return`; the rows as they came."""
        return autograd.sum_copies(expert_output, handle.arriving)

    def token_rows(self, returned: Tensor, handle: Handle) -> Tensor:
        """See `Dispatcher.token_rows`."""
        (leg,) = handle.legs
        # Pairs without an expert have a copy that never left; zeros stand in for what they sum.
        num_behind = len(leg.departing.source) - sum(leg.send)
        rows = F.pad(returned, (0, 0, 0, num_behind)) if num_behind else returned
        return autograd.sum_copies(rows, leg.departing, handle.weights)
