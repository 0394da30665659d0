"""The co-activation count by a kernel: integer atomics, so that any order gives the same counts."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from c2r.ops.launching import launch

_TOKENS = 128  # one a thread of four warps


def count_pairs(expert_ids: Tensor, num_experts: int, kept: Tensor | None = None) -> Tensor:
    """See the reference."""
    expert_ids = expert_ids.contiguous()
    num_tokens, k = expert_ids.shape
    counts = torch.zeros(num_experts, num_experts, dtype=torch.int64, device=expert_ids.device)
    launch(
        _count, (triton.cdiv(num_tokens, _TOKENS),),
        expert_ids, expert_ids if kept is None else kept.contiguous(), counts,
        num_tokens, num_experts,
        K=k, IS_PARTIAL=kept is not None, TOKENS=_TOKENS, num_warps=4,
    )  # fmt: skip
    return counts + counts.T


@triton.jit
def _count(
    expert_ids, kept, counts, num_tokens, num_experts,
    K: tl.constexpr, IS_PARTIAL: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A program per block of tokens; counts each pair in the order of its places."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    at = tokens * K
    for first in range(K - 1):
        is_pair = tokens < num_tokens
        if IS_PARTIAL:
            is_pair &= tl.load(kept + at + first, mask=is_pair, other=0) != 0
        row = tl.load(expert_ids + at + first, mask=is_pair, other=0)
        for second in range(first + 1, K):
            is_counted = is_pair
            if IS_PARTIAL:
                is_counted &= tl.load(kept + at + second, mask=is_pair, other=0) != 0
            column = tl.load(expert_ids + at + second, mask=is_counted, other=0)
            place = counts + row * num_experts + column
            tl.atomic_add(place, 1, mask=is_counted, sem="relaxed")
