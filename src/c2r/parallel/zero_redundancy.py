"""One row per (token, rank) out, weighted and summed there, one row back.

A dispatch is a chain of stages. In each, rows go once to every destination that holds an expert of
theirs, with the ids and weights of those experts; sums come back the same way. Flat dispatch has
one stage, over all ranks. Hierarchical dispatch has two: first once per node, to the rank that has
the sender's number in it, then once per rank inside the node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from c2r.ops.copy_rows import RowCopies, copies_of
from c2r.ops.dispatch_layout import (
    decode_pairs,
    encode_pairs,
    expert_major,
    one_row_per_destination,
    sort_by_expert,
)
from c2r.parallel.comm import Comm
from c2r.parallel.dispatch import Dispatcher, Handle, Leg, Route, chunk_of_pairs
from c2r.parallel.pending import Pending
from c2r.parallel.slots import ExpertSlots
from c2r.types import Int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pairs:
    """Which experts the rows that are here have chosen, a pair for each (row, expert).

    Rows and pairs of all chunks, chunk after chunk.

    Attributes:
        rows: `[pairs]` int64, ascending.
        ids: `[pairs]` int64, what the stage calls the expert.
        weights: `[pairs]` floats.
        chunks: `[pairs]` int64, ascending.
        num_rows: rows that are here, of each chunk.
        num_pairs: pairs of each chunk.
        complaint: what is known of ids out of range, as from `Dispatcher.complaint`.
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor
    chunks: Tensor
    num_rows: list[int]
    num_pairs: list[int]
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

    def route(self, expert_ids: Tensor, weights: Tensor, sizes: Sequence[int]) -> list[Route]:
        """See `Dispatcher.route`; only the pairs of the last leg are left to wait for."""
        pairs = self._pairs_of(expert_ids, weights, sizes)
        *early, last = self.stages
        all_legs = []
        for stage in early:
            legs, arriving = self._send_pairs(stage, pairs)
            all_legs.append(legs)
            # What the next stage sends on is what arrives in this one, so it has to wait.
            pairs = arriving.wait()
        legs, arriving = self._send_pairs(last, pairs)
        all_legs.append(legs)

        def split_weights() -> Sequence[Tensor]:
            return torch.split(arriving.wait().weights, arriving.wait().num_pairs)

        weights_there = Pending(split_weights)
        routes = []
        for chunk, chunk_legs in enumerate(zip(*all_legs, strict=True)):
            handle = partial(self._handle, chunk, chunk_legs, arriving, weights_there)
            departing = partial(_departing, chunk_legs[0])
            routes.append(
                Route(departing=Pending(departing), first_leg=chunk_legs[0], handle=Pending(handle))
            )
        return routes

    def _pairs_of(self, expert_ids: Tensor, weights: Tensor, sizes: Sequence[int]) -> Pairs:
        """The pairs of this rank's tokens, from ids and weights `[tokens, k]`."""
        slots, num_invalid = self.slots.choose(expert_ids)
        num_tokens, k = expert_ids.shape
        tokens = torch.arange(num_tokens, device=slots.device)
        num_pairs = [size * k for size in sizes]
        return Pairs(
            rows=tokens.repeat_interleave(k),
            ids=slots,
            weights=weights.reshape(-1),
            chunks=chunk_of_pairs(slots, num_pairs),
            num_rows=list(sizes),
            num_pairs=num_pairs,
            complaint=self.complaint(num_invalid),
        )

    def _send_pairs(self, stage: Stage, pairs: Pairs) -> tuple[list[Pending[Leg]], Pending[Pairs]]:
        """Agrees on the counts, then starts sending the pairs of all chunks in one exchange.

        Gives the leg that the rows of each chunk will take, and the pairs that arrive.
        """
        size, num_chunks = stage.comm.size, len(pairs.num_rows)
        # By rank, then by chunk: so the pairs for a rank lie together.
        keys = stage.destination[pairs.ids] * num_chunks + pairs.chunks
        num_keys = size * num_chunks
        layout = one_row_per_destination(pairs.rows, keys.clamp_(max=num_keys), num_keys)
        shape = (size, num_chunks)
        rows_out, pairs_out = layout.num_rows.view(shape), layout.num_pairs.view(shape)
        counts = torch.stack([rows_out, pairs_out, pairs.complaint.expand(shape)], dim=2)
        sent, received, counts_in = self.exchange_counts(stage.comm, counts).wait()
        num_out, num_in = np.array(sent), np.array(received)
        # A complaint reaches all ranks with the last stage only; raised earlier, by some ranks, it
        # would leave the others waiting.
        if stage is self.stages[-1]:
            self.check(num_in[..., 2].flat)
        order = layout.order[: num_out[..., 1].sum()]  # what lies beyond stays behind
        codes = encode_pairs(stage.next_id[pairs.ids[order]], layout.starts_row[: len(order)])
        split = self.split_sizes(*_per_rank(num_out[..., 1], num_in[..., 1]), "pairs")
        arriving = stage.comm.exchange_tagged(pairs.weights[order], codes, split)
        source = _by_chunk(layout.source[: num_out[..., 0].sum()], rows_out)

        def arrive() -> Pairs:
            weights, codes = arriving.wait()
            rows, ids = decode_pairs(_by_chunk(codes, counts_in[..., 1]))
            num_rows, num_pairs, _ = num_in.sum(0).T.tolist()
            return Pairs(
                rows=rows,
                ids=ids,
                weights=_by_chunk(weights, counts_in[..., 1]),
                chunks=chunk_of_pairs(ids, num_pairs),
                num_rows=num_rows,
                num_pairs=num_pairs,
                complaint=torch.full_like(pairs.complaint, num_in[..., 2].max()),
            )

        return self._legs(stage, pairs, source, num_out, num_in), Pending(arrive)

    def _legs(
        self, stage: Stage, pairs: Pairs, source: Tensor, num_out: Int, num_in: Int
    ) -> list[Pending[Leg]]:
        """The leg of each chunk.

        Args:
            stage: the exchange.
            pairs: what the rows that are here have chosen.
            source: `[rows sent]` int64, the row that each is a copy of; chunk after chunk.
            num_out: `[ranks, chunks, 3]` rows, pairs and complaint, to each rank.
            num_in: the same, from each rank.
        """
        first_rows = np.cumsum([0, *pairs.num_rows])
        parts = torch.split(source, num_out[..., 0].sum(0).tolist())

        def leg(chunk: int) -> Leg:
            send, receive = _per_rank(num_out[:, chunk, :1], num_in[:, chunk, :1])
            return Leg(
                comm=stage.comm,
                departing=copies_of(parts[chunk] - first_rows[chunk], pairs.num_rows[chunk]),
                send=send,
                receive=receive,
                # An int16 code and a weight for each pair, three int64 counts for each rank.
                side_bytes_sent=int(num_out[:, chunk, 1].sum()) * (2 + pairs.weights.itemsize)
                + 24 * stage.comm.size,
            )

        return [Pending(partial(leg, chunk)) for chunk in range(len(parts))]

    def _handle(
        self,
        chunk: int,
        legs: Sequence[Pending[Leg]],
        arriving: Pending[Pairs],
        weights: Pending[Sequence[Tensor]],
    ) -> Handle:
        """Waits for the pairs of the last leg, and orders the rows that arrive by expert."""
        pairs = arriving.wait()
        own = slice(*np.cumsum([0, *pairs.num_pairs])[chunk : chunk + 2])
        first_row = sum(pairs.num_rows[:chunk])
        num_local = self.slots.num_on_rank[self.comm.rank]
        copies, counts = sort_by_expert(
            pairs.rows[own] - first_row, pairs.ids[own], pairs.num_rows[chunk], num_local
        )
        return Handle(
            num_ranks=self.comm.size,
            legs=tuple(leg.wait() for leg in legs),
            arriving=copies,
            counts=counts,
            weights=weights.wait()[chunk],
        )


def _departing(leg: Pending[Leg]) -> RowCopies:
    return leg.wait().departing


def _per_rank(send: Int, receive: Int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sums over chunks of two tables `[ranks, chunks]`, as an exchange takes them."""
    return tuple(send.sum(1).tolist()), tuple(receive.sum(1).tolist())


def _by_chunk(values: Tensor, counts: Tensor) -> Tensor:
    """`values` grouped by rank, then chunk, regrouped by chunk, then rank.

    `counts` `[ranks, chunks]` are those of each group.
    """
    return values if counts.shape[1] == 1 else values[expert_major(counts, len(values))]


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
