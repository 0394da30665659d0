"""Plain torch reference of the co-activation count."""

import torch
from torch import Tensor


def count_pairs(expert_ids: Tensor, num_experts: int, kept: Tensor | None = None) -> Tensor:
    """How many tokens chose each pair of experts.

    Two tokens that chose {0, 2} and {2, 1} of three experts give
    `[[0, 0, 1], [0, 0, 1], [1, 1, 0]]`.

    Args:
        expert_ids: `[tokens, k]` integers, distinct where kept.
        num_experts: E.
        kept: `[tokens, k]` bool, places that hold an expert; None for all.

    Returns:
        `[E, E]` int64, symmetric, with a zero diagonal.
    """
    k = expert_ids.shape[1]
    # Each unordered pair of columns is counted once, and mirrored at the end.
    first, second = torch.triu_indices(k, k, offset=1)
    pairs = expert_ids[:, first] * num_experts + expert_ids[:, second]
    pairs = pairs.flatten() if kept is None else pairs[kept[:, first] & kept[:, second]]
    counts = torch.bincount(pairs, minlength=num_experts**2)
    counts = counts.view(num_experts, num_experts)
    return counts + counts.T
