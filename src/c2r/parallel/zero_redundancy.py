"""One row per (token, rank) out, weighted and summed there, one row back.

A dispatch is a chain of stages. In each, rows go once to every destination that holds an expert of
theirs, with the ids and weights of those experts; sums come back the same way. Flat dispatch has
one stage, over all ranks. Hierarchical dispatch has two: first once per node, to the rank that has
the sender's number in it, then once per rank inside the node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from c2r.ops.copy_rows import copies_of
from c2r.ops.dispatch_layout import (
    SendLayout,
    decode_pairs,
    encode_pairs,
    one_row_per_destination,
    sort_by_expert,
)
from c2r.parallel.comm import Comm
from c2r.parallel.dispatch import Dispatcher, Handle, Leg, Route
from c2r.parallel.pending import Pending
from c2r.parallel.slots import ExpertSlots


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pairs:
    """Which experts the rows that are here have chosen, a pair for each (row, expert).

    Attributes:
        rows: `[pairs]` int64, ascending.
        ids: `[pairs]` int64, what the stage calls the expert.
        weights: `[pairs]` floats.
        num_rows: rows that are here.
        complaint: what is known of ids out of range, as from `Dispatcher.complaint`.
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor
    num_rows: int
    complaint: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stage:
    """One exchange of every dispatch: a `Leg` is what one dispatch sends in it.

    Ids become smaller on the way: slots of all ranks before the first stage, slots of a node
    before the second, experts of the rank in the end. So each stage is two tables.

    Attributes:
        comm: who takes part.
        destination: `[ids + 1]` int64, the rank of `comm` that an id is sent to; the last, for
            none, is past all.
        next_id: `[ids + 1]` int64, what the id is called there.
    """

    comm: Comm
    destination: Tensor
    next_id: Tensor


class ZeroRedundancyDispatcher(Dispatcher):
    """One row per (token, rank) both ways; weights are applied where the experts are."""

    def __init__(
        self,
        comm: Comm,
        slots: ExpertSlots,
        dispatch_dtype: torch.dtype | None = None,
        layer: str = "the layer",
    ) -> None:
        super().__init__(comm, slots, dispatch_dtype, layer)
        self.stages = self.make_stages()

    def make_stages(self) -> tuple[Stage, ...]:
        """The exchanges, in the order of the way out."""
        most = self.slots.max_per_rank
        slots = torch.arange(self.slots.num_slots + 1, device=self.comm.device)
        return (Stage(comm=self.comm, destination=slots // most, next_id=slots % most),)

    def route(self, expert_ids: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Route]:
        """See `Dispatcher.route`; only the pairs of the last leg are left to wait for."""
        chunks = [
            self._pairs_of(ids, chunk_weights)
            for ids, chunk_weights in zip(expert_ids, weights, strict=True)
        ]
        legs: list[list[Leg]] = [[] for _ in chunks]
        *early, last = self.stages
        for stage in early:
            sent = self._send_chunks(stage, chunks)
            # What the next stage sends on is what arrives in this one, so it has to wait.
            chunks = [arriving.wait() for _, arriving in sent]
            for chunk_legs, (leg, _) in zip(legs, sent, strict=True):
                chunk_legs.append(leg)
        routes = []
        for chunk_legs, (leg, arriving) in zip(legs, self._send_chunks(last, chunks), strict=True):
            all_legs = (*chunk_legs, leg)
            routes.append(
                Route(
                    departing=all_legs[0].departing,
                    first_leg=Pending.of(all_legs[0]),
                    handle=Pending(partial(self._handle, all_legs, arriving)),
                )
            )
        return routes

    def _pairs_of(self, expert_ids: Tensor, weights: Tensor) -> Pairs:
        """The pairs of this rank's tokens, from ids and weights `[tokens, k]`."""
        slots, num_invalid = self.slots.choose(expert_ids)
        num_tokens, k = expert_ids.shape
        tokens = torch.arange(num_tokens, device=slots.device)
        return Pairs(
            rows=tokens.repeat_interleave(k),
            ids=slots,
            weights=weights.reshape(-1),
            num_rows=num_tokens,
            complaint=self.complaint(num_invalid),
        )

    def _send_chunks(
        self, stage: Stage, chunks: Sequence[Pairs]
    ) -> list[tuple[Leg, Pending[Pairs]]]:
        """Agrees on the counts of all chunks, then starts sending the pairs of each.

        Gives for each chunk the leg that its rows will take, and the pairs that arrive.
        """
        size = stage.comm.size
        layouts = [
            one_row_per_destination(pairs.rows, stage.destination[pairs.ids], size)
            for pairs in chunks
        ]
        counts = [  # [ranks, 3] for each chunk
            torch.stack([layout.num_rows, layout.num_pairs, pairs.complaint.expand(size)], dim=1)
            for layout, pairs in zip(layouts, chunks, strict=True)
        ]
        sent, received, _ = self.exchange_counts(stage.comm, torch.stack(counts, dim=1)).wait()
        # A complaint reaches all ranks with the last stage only; raised earlier, by some ranks, it
        # would leave the others waiting.
        if stage is self.stages[-1]:
            self.check(chunk[2] for rank in received for chunk in rank)
        return [
            self._send_pairs(
                stage,
                pairs,
                layout,
                [rank[index] for rank in sent],
                [rank[index] for rank in received],
            )
            for index, (pairs, layout) in enumerate(zip(chunks, layouts, strict=True))
        ]

    def _send_pairs(
        self,
        stage: Stage,
        pairs: Pairs,
        layout: SendLayout,
        sent: list[Any],
        received: list[Any],
    ) -> tuple[Leg, Pending[Pairs]]:
        """Starts sending the pairs of one chunk; gives the leg of its rows, and what arrives.

        Args:
            stage: the exchange.
            pairs: what the rows that are here have chosen.
            layout: the same by destination.
            sent: `[ranks, 3]` rows and pairs that go to each rank, and the complaint.
            received: `[ranks, 3]` those that come from each.
        """
        send_rows, send_pairs, _ = zip(*sent, strict=True)
        receive_rows, receive_pairs, complaints = zip(*received, strict=True)
        order = layout.order[: sum(send_pairs)]  # what lies beyond stays behind
        codes = encode_pairs(stage.next_id[pairs.ids[order]], layout.starts_row[: len(order)])
        arriving = stage.comm.exchange_tagged(
            pairs.weights[order], codes, self.split_sizes(send_pairs, receive_pairs, "pairs")
        )
        leg = Leg(
            comm=stage.comm,
            departing=copies_of(layout.source[: sum(send_rows)], pairs.num_rows),
            send=send_rows,
            receive=receive_rows,
            # An int16 code and a weight for each pair, three int64 counts for each rank.
            side_bytes_sent=len(order) * (2 + pairs.weights.itemsize) + 24 * stage.comm.size,
        )

        def arrive() -> Pairs:
            weights, codes = arriving.wait()
            rows, ids = decode_pairs(codes)
            return Pairs(
                rows=rows,
                ids=ids,
                weights=weights,
                num_rows=sum(receive_rows),
                complaint=torch.full_like(pairs.complaint, max(complaints)),
            )

        return leg, Pending(arrive)

    def _handle(self, legs: tuple[Leg, ...], arriving_pairs: Pending[Pairs]) -> Handle:
        """Waits for the pairs of the last leg, and orders the rows that arrive by expert."""
        pairs = arriving_pairs.wait()
        num_local = self.slots.num_on_rank[self.comm.rank]
        arriving, counts = sort_by_expert(pairs.rows, pairs.ids, pairs.num_rows, num_local)
        return Handle(
            num_ranks=self.comm.size,
            legs=legs,
            arriving=arriving,
            counts=counts,
            weights=pairs.weights,
        )


class HierarchicalDispatcher(ZeroRedundancyDispatcher):
    """One row per (token, node) between nodes, then one per rank inside the node.

    Args:
        comm: the ranks, numbered node by node.
        slots: which expert lives where.
        num_nodes: how many nodes; must divide the ranks.
        dispatch_dtype: as in `Dispatcher`.
        layer: as in `Dispatcher`.
    """

    def __init__(
        self,
        comm: Comm,
        slots: ExpertSlots,
        num_nodes: int,
        dispatch_dtype: torch.dtype | None = None,
        layer: str = "the layer",
    ) -> None:
        self.num_nodes = num_nodes
        super().__init__(comm, slots, dispatch_dtype, layer)

    def make_stages(self) -> tuple[Stage, ...]:
        """See `ZeroRedundancyDispatcher.make_stages`."""
        per_node = self.comm.size // self.num_nodes
        node, number = divmod(self.comm.rank, per_node)
        across = self.comm.subset([other * per_node + number for other in range(self.num_nodes)])
        inside = self.comm.subset([node * per_node + other for other in range(per_node)])
        most = self.slots.max_per_rank
        slots = torch.arange(self.slots.num_slots + 1, device=self.comm.device)
        in_node = slots[: per_node * most]
        return (
            Stage(
                comm=across,
                destination=slots // (per_node * most),
                next_id=slots % (per_node * most),
            ),
            Stage(comm=inside, destination=in_node // most, next_id=in_node % most),
        )
