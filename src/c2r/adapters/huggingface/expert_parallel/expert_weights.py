"""Weights of experts that are spread over ranks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from c2r.parallel import Comm, SplitSizes, rows_of
from c2r.plans.holders import NO_EXPERTS, experts_of
from c2r.types import Int

_PIECE_BYTES = 4 * 2**20
"""Of a rank's share, per exchange: holds little beside the parameter, and is long enough that a
message's fixed cost does not count. Chosen by hand; benchmarks/load_memory.py shows the memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Homes:
    """Where the experts of a module live.

    Attributes:
        placement: `[E]` int64, the rank that holds each expert as its own.
        replicas: `[ranks, r]` int64, further experts of each rank; empty for none.
    """

    placement: Int
    replicas: Int = field(default_factory=lambda: NO_EXPERTS)

    def on(self, rank: int) -> Int:
        """The experts on `rank`: its own ascending, then replicas, as its parameters hold them."""
        return experts_of(self.placement, self.replicas, rank)

    def num_own(self, rank: int) -> int:
        """Experts that `rank` holds as its own; the first of its parameters' rows."""
        return int(np.count_nonzero(self.placement == rank))

    def by_process(self, num_ranks: int, num_groups: int) -> tuple[Int, list[Int]]:
        """The process of each expert `[E]`, and by process its replicas, once a rank's are sharded.

        That is, shared out among the groups as `rows_of` does.
        """
        placement, replicas = np.empty_like(self.placement), []
        for group, rank in product(range(num_groups), range(num_ranks)):
            held, num_own = self.on(rank), self.num_own(rank)
            rows = rows_of(len(held), group, num_groups)
            placement[held[rows.start : min(rows.stop, num_own)]] = group * num_ranks + rank
            replicas.append(held[max(rows.start, num_own) : rows.stop])
        return placement, replicas


def replace_experts(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Replaces every parameter `[experts, ...]` of a module by `change` of it."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        changed = change(parameter.detach())
        module.register_parameter(name, nn.Parameter(changed, parameter.requires_grad))


def in_pieces(tensors: tuple[Tensor, ...], num_per_rank: float) -> Iterator[tuple[Tensor, ...]]:
    """Views `[experts, values]` of tensors `[experts, ...]`, a stretch of the values at a time.

    Cut along the values of an expert, the same on all ranks, not along experts, whose number
    differs: so that all ranks exchange equally often. A piece of `num_per_rank` experts has 4 MiB.
    """
    num_values, num_bytes = math.prod(tensors[0].shape[1:]), tensors[0].element_size()
    num_pieces = math.ceil(num_values * num_bytes * num_per_rank / _PIECE_BYTES)
    pieces = (t.view(len(t), num_values).tensor_split(num_pieces, dim=1) for t in tensors)
    return zip(*pieces, strict=True)


@torch.no_grad()
def move_experts(module: nn.Module, comm: Comm, before: Homes, wanted: Sequence[Int]) -> None:
    """Brings the experts of a module from their own ranks `before` to those that want them.

    They travel in pieces, so that little more memory is needed than for one parameter twice.

    Args:
        module: its parameters are those of this rank.
        comm: the ranks.
        before: where the experts are.
        wanted: by rank the experts that it will have, in the order of its parameters' rows.
    """
    if all(np.array_equal(before.on(rank), experts) for rank, experts in enumerate(wanted)):
        return
    # To each rank in the order that it will have; so from each sender they arrive in that order.
    sent = [experts[before.placement[experts] == comm.rank] for experts in wanted]
    row_of = np.cumsum(before.placement == comm.rank) - 1
    order = torch.from_numpy(row_of[np.concatenate(sent)])
    sources = before.placement[wanted[comm.rank]]
    arriving = torch.from_numpy(sources.argsort(kind="stable"))
    sizes = SplitSizes(
        send=[len(ids) for ids in sent],
        receive=np.bincount(sources, minlength=comm.size).tolist(),
        what="the exchange of experts",
    )
    num_per_rank = len(before.placement) / comm.size

    def move(shard: Tensor) -> Tensor:
        moved = shard.new_empty(len(arriving), *shard.shape[1:])
        for old, new in in_pieces((shard, moved), num_per_rank):
            received = comm.exchange(old[order.to(old.device)], sizes).wait()
            new[arriving.to(new.device)] = received
        return moved

    replace_experts(module, move)


@torch.no_grad()
def gather_experts(shard: Tensor, comm: Comm, homes: Homes) -> Tensor:
    """All experts `[E, ...]` in the order of their ids on rank 0, none elsewhere.

    Each comes from its own rank, whatever replicas there are.
    """
    num_on_rank = [homes.num_own(rank) for rank in range(comm.size)]
    is_first = comm.rank == 0
    sizes = SplitSizes(
        send=[num_on_rank[comm.rank]] + [0] * (comm.size - 1),
        receive=num_on_rank if is_first else [0] * comm.size,
        what="the gathering of experts",
    )
    gathered = comm.exchange(shard[: num_on_rank[comm.rank]].detach(), sizes).wait()
    if not is_first:
        return gathered
    # Gathered rows are in the order `by_rank`; its inverse puts them in the order of ids.
    by_rank = homes.placement.argsort(kind="stable")
    return gathered[torch.from_numpy(by_rank.argsort())]
