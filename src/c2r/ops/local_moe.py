"""The Mixture-of-Experts layer of one device: what lies between dispatch and combine."""

from collections.abc import Callable

import torch
from torch import Tensor

from c2r.ops import autograd
from c2r.ops.dispatch_layout import sort_by_expert


def local_moe(
    hidden: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    experts_fn: Callable[[Tensor, Tensor], Tensor],
    num_experts: int,
) -> Tensor:
    """The weighted sum of each token's experts, all of which are on its device.

    Nothing is read back to the host, and sums run in the order of the choice: results are bitwise
    the same every time.

    Args:
        hidden: `[tokens, h]`.
        expert_ids: `[tokens, k]` int64; E for none.
        weights: `[tokens, k]` floats.
        experts_fn: the experts: rows `[tokens * k, h]` by expert and `[E]` int64 counts in, rows
            out; those of none come last, are not counted, and must come out finite.
        num_experts: E.

    Returns:
        `[tokens, h]`.
    """
    num_tokens, k = expert_ids.shape
    rows = torch.arange(num_tokens * k, device=hidden.device) // k
    copies, counts = sort_by_expert(rows, expert_ids.reshape(-1), num_tokens, num_experts)
    output = experts_fn(autograd.copy_rows(hidden, copies), counts)
    return autograd.sum_copies(output, copies, weights.reshape(-1))
