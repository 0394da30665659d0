"""One row per (token, rank) out, weighted and summed there, one row back.

A dispatch is a chain of stages. In each, rows go once to every destination that holds an expert of
theirs, with the ids and weights of those experts; sums come back the same way. Flat dispatch has
one stage, over all ranks. Hierarchical dispatch has two: first once per node, to the rank that has
the sender's place in it, then once per rank inside the node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from c2r.ops.copy_rows import copies_of
from c2r.ops.dispatch_layout import (
    Departure,
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
    """Which experts the rows that are here have chosen.

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
    """One exchange of a dispatch.

    Attributes:
        comm: who takes part.
        destination: `[ids + 1]` int64, the rank of `comm` that an id is sent to; the last, for
            none, is past all.
        next_id: `[ids + 1]` int64, what it is called there.
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
        local = self.slots.slot_of % self.slots.max_per_rank
        return (Stage(comm=self.comm, destination=self.slots.rank_of, next_id=local),)

    def route(self, expert_ids: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Route]:
        """See `Dispatcher.route`; all that is left to wait for are the pairs of the last leg."""
        chunks = [
            self._chosen(ids, chunk_weights)
            for ids, chunk_weights in zip(expert_ids, weights, strict=True)
        ]
        legs: list[list[Leg]] = [[] for _ in chunks]
        *early, last = self.stages
        for stage in early:
            travelled = self._travel(stage, chunks)
            chunks = [pairs.wait() for _, pairs in travelled]
            for chunk_legs, (leg, _) in zip(legs, travelled, strict=True):
                chunk_legs.append(leg)
        routes = []
        for chunk_legs, (leg, pairs) in zip(legs, self._travel(last, chunks), strict=True):
            first, *_ = all_legs = (*chunk_legs, leg)
            routes.append(
                Route(
                    departing=first.departing,
                    first_leg=Pending.of(first),
                    handle=Pending(partial(self._handle, all_legs, pairs)),
                )
            )
        return routes

    def _chosen(self, expert_ids: Tensor, weights: Tensor) -> Pairs:
        flat, num_invalid = self.slots.none_where_invalid(expert_ids)
        num_tokens, k = expert_ids.shape
        tokens = torch.arange(num_tokens, device=flat.device)
        return Pairs(
            rows=tokens.repeat_interleave(k),
            ids=flat,
            weights=weights.reshape(-1),
            num_rows=num_tokens,
            complaint=self.complaint(num_invalid),
        )

    def _travel(self, stage: Stage, chunks: Sequence[Pairs]) -> list[tuple[Leg, Pending[Pairs]]]:
        """Sends the pairs of every chunk; gives the leg of its rows, and the pairs to come."""
        size = stage.comm.size
        departures = [
            one_row_per_destination(pairs.rows, stage.destination[pairs.ids], size)
            for pairs in chunks
        ]
        counts = [
            torch.stack(
                [departure.num_rows, departure.num_pairs, pairs.complaint.expand(size)], dim=1
            )
            for departure, pairs in zip(departures, chunks, strict=True)
        ]
        sent, received, _ = self.exchange_counts(stage.comm, torch.stack(counts, dim=1)).wait()
        if stage is self.stages[-1]:
            self.check(chunk[2] for rank in received for chunk in rank)
        return [
            self._send_pairs(
                stage,
                (pairs, departure),
                [rank[index] for rank in sent],
                [rank[index] for rank in received],
            )
            for index, (pairs, departure) in enumerate(zip(chunks, departures, strict=True))
        ]

    def _send_pairs(
        self,
        stage: Stage,
        chosen: tuple[Pairs, Departure],
        sent: list[Any],
        received: list[Any],
    ) -> tuple[Leg, Pending[Pairs]]:
        pairs, departure = chosen
        send_rows, send_pairs, _ = zip(*sent, strict=True)
        receive_rows, receive_pairs, complaints = zip(*received, strict=True)
        order = departure.order[: sum(send_pairs)]
        codes = encode_pairs(stage.next_id[pairs.ids[order]], departure.starts_row[: len(order)])
        arriving = stage.comm.exchange_tagged(
            pairs.weights[order], codes, self.journey(send_pairs, receive_pairs, "pairs")
        )
        leg = Leg(
            comm=stage.comm,
            departing=copies_of(departure.source[: sum(send_rows)], pairs.num_rows),
            send=send_rows,
            receive=receive_rows,
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
        node, place = divmod(self.comm.rank, per_node)
        across = self.comm.subset([other * per_node + place for other in range(self.num_nodes)])
        inside = self.comm.subset([node * per_node + other for other in range(per_node)])
        most = self.slots.max_per_rank
        in_node = torch.arange(per_node * most, device=self.slots.slot_of.device)
        return (
            Stage(
                comm=across,
                destination=self.slots.slot_of // (per_node * most),
                next_id=self.slots.slot_of % (per_node * most),
            ),
            Stage(comm=inside, destination=in_node // most, next_id=in_node % most),
        )
