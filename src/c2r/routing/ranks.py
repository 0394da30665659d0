"""Which ranks a token may use, under policies that know the placement.

A token keeps to few ranks, and takes its k experts from those. All functions are batched over
tokens and differ only in how many ranks they grant and in how they pick them.
"""

import torch
from torch import Tensor

_CANDIDATES_PER_EXPERT = 3


def best_ranks(mass: Tensor, members: Tensor, k: int, num_allowed: int) -> Tensor:
    """The `num_allowed` ranks with the largest sums of their top k/m masses (DeepSeek-V3's rule).

    Args:
        mass: `[tokens, E]` non-negative score masses.
        members: `[ranks, E]` bool.
        k: experts per token.
        num_allowed: m, ranks per token.

    Returns:
        `[tokens, ranks]` bool.
    """
    slots = _slots(members)
    padded = torch.cat([mass, mass.new_full((len(mass), 1), -1.0)], dim=-1)
    held = padded.index_select(1, slots.flatten()).view(len(mass), *slots.shape)
    held = held.permute(2, 0, 1).contiguous()
    sums = torch.zeros_like(held[0])
    for _ in range(min(-(-k // num_allowed), len(held))):  # quicker than top-k of many short rows
        best, slot = held.max(0)
        sums += best.clamp(min=0)
        held.scatter_(0, slot[None], -1.0)
    chosen = sums.topk(num_allowed, dim=-1).indices
    return torch.zeros_like(sums, dtype=torch.bool).scatter(-1, chosen, True)


def _slots(members: Tensor) -> Tensor:
    """Expert ids of each rank `[ranks, slots]`, padded with E."""
    num_experts = members.shape[1]
    ids = torch.arange(num_experts, device=members.device).expand_as(members)
    ids = ids.masked_fill(~members, num_experts).sort(dim=-1).values
    return ids[:, : int(members.sum(-1).max())]


def fewest_ranks(mass: Tensor, placement: Tensor, num_ranks: int, k: int, eps: float) -> Tensor:
    """The fewest ranks whose own top-k keeps (1 - eps) of the unconstrained top-k mass.

    Each token ranks the ranks by the mass that they hold of its top-k, experts just beyond the
    top-k counting half, and takes as many from the front as it needs. Only the `3 k` best-scored
    experts are looked at: a token may get a rank more than it needs, never one too few.

    Args:
        mass: `[tokens, E]` non-negative score masses.
        placement: `[E]` int64, the rank of each expert.
        num_ranks: ranks in all.
        k: experts per token.
        eps: share of the mass that may be lost, in [0, 1).

    Returns:
        `[tokens, ranks]` bool.
    """
    num_candidates = min(_CANDIDATES_PER_EXPERT * k, mass.shape[-1])
    top_mass, candidates = mass.topk(num_candidates, dim=-1)
    ranks = placement.index_select(0, candidates.flatten()).view_as(candidates)
    worth = torch.cat([top_mass[:, :k], top_mass[:, k:] / 2], dim=-1)
    held = mass.new_zeros(len(mass), num_ranks).scatter_add_(-1, ranks, worth)
    order = held.argsort(dim=-1, descending=True)
    places = torch.arange(num_ranks, device=mass.device).expand_as(order)
    turn = torch.empty_like(order).scatter_(-1, order, places)
    least = _ranks_for(k, int(torch.bincount(placement, minlength=num_ranks).min()))
    most = min(max(k, least), num_ranks)
    # inside[:, n, c]: candidate c is among the top-k of the first n + 1 ranks.
    counts = torch.arange(1, most + 1, device=mass.device)[:, None]
    inside = turn.gather(-1, ranks)[:, None] < counts
    inside &= inside.cumsum(-1, dtype=torch.uint8) <= k
    kept = (inside.to(mass.dtype) @ top_mass[..., None]).squeeze(-1)
    enough = kept >= (1 - eps) * top_mass[:, :k].sum(-1, keepdim=True)
    needed = 1 + (~enough[:, :-1]).sum(-1, keepdim=True)
    return turn < needed.clamp(min=least)


def _ranks_for(k: int, experts_per_rank: int) -> int:
    """Ranks that surely hold k experts."""
    return -(-k // max(experts_per_rank, 1))
