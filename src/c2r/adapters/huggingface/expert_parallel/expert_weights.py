"""Weights and gradients of experts that are spread over ranks."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from c2r.parallel import Comm, SplitSizes
from c2r.types import Int

_PIECE_BYTES = 4 * 2**20
"""Of a rank's share, per exchange: holds little beside the parameter, and is long enough that a
message's fixed cost does not count. Chosen by hand; benchmarks/load_memory.py shows the memory."""


def replace_experts(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Replaces every parameter `[experts, ...]` of a module by `change` of it."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        changed = change(parameter.detach())
        module.register_parameter(name, nn.Parameter(changed, parameter.requires_grad))


@torch.no_grad()
def move_experts(module: nn.Module, comm: Comm, before: Int, after: Int) -> None:
    """Brings the experts of a module from the ranks `before` `[E]` to the ranks `after` `[E]`.

    The experts of a rank are in ascending order, before and after. They travel in pieces, so that
    little more memory is needed than for one parameter twice.
    """
    if np.array_equal(before, after):
        return
    destinations = after[before == comm.rank]
    order = torch.from_numpy(destinations.argsort(kind="stable"))
    sources = [np.flatnonzero((before == rank) & (after == comm.rank)) for rank in range(comm.size)]
    # They arrive by sender, within one ascending; a rank holds them ascending in all.
    ascending = torch.from_numpy(np.concatenate(sources).argsort())
    sizes = SplitSizes(
        send=np.bincount(destinations, minlength=comm.size).tolist(),
        receive=[len(ids) for ids in sources],
        what="the exchange of experts",
    )

    def move(shard: Tensor) -> Tensor:
        moved = shard.new_empty(len(ascending), *shard.shape[1:])
        # Cut along the values of an expert, the same on all ranks, not along experts, whose number
        # differs: so that all ranks exchange equally often.
        num_pieces = -(-shard[0].nbytes * len(before) // comm.size // _PIECE_BYTES)
        pieces = (t.view(len(t), -1).tensor_split(num_pieces, dim=1) for t in (shard, moved))
        for old, new in zip(*pieces, strict=True):
            received = comm.exchange(old[order.to(old.device)], sizes).wait()
            new.copy_(received[ascending.to(new.device)])
        return moved

    replace_experts(module, move)


@torch.no_grad()
def gather_experts(shard: Tensor, comm: Comm, placement: Int) -> Tensor:
    """All experts `[E, ...]` in the order of their ids on rank 0, none elsewhere."""
    num_on_rank = np.bincount(placement, minlength=comm.size).tolist()
    is_first = comm.rank == 0
    sizes = SplitSizes(
        send=[len(shard)] + [0] * (comm.size - 1),
        receive=num_on_rank if is_first else [0] * comm.size,
        what="the gathering of experts",
    )
    gathered = comm.exchange(shard.detach(), sizes).wait()
    if not is_first:
        return gathered
    # Gathered rows are in the order `by_rank`; its inverse puts them in the order of ids.
    by_rank = placement.argsort(kind="stable")
    return gathered[torch.from_numpy(by_rank.argsort())]
