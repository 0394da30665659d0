"""Plain torch reference of the weighted sum of copies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.ops.copy_rows import RowCopies
from c2r.ops.copy_rows.reference import copy_rows

_CPU_BLOCK = 128
"""Rows widened at a time: 128 of 1,024 float32 are 512 KiB, which fit a core's cache. Whole tensors
took four times as long (docs/log.md, gradients of weighted sums)."""


def sum_copies(rows: Tensor, copies: RowCopies, weights: Tensor | None = None) -> Tensor:
    """The sum of each source's copies, in the order of `copies.members`; always deterministic.

    Sums run in float32 for narrower types and are rounded once. With the rows `[[1], [2], [4]]`
    that are copies of `[2, 0, 0]`, the sums are `[[6], [0], [1]]`.

    Args:
        rows: `[copies, h]` floats.
        copies: of how many sources, and which rows belong to each.
        weights: `[copies]` floats in the order of `copies.members`; 1 where absent.

    Returns:
        `[sources, h]` of the rows' type, zero for a source without copies.
    """
    if copies.is_permutation and weights is None:
        return rows.index_select(0, copies.members)
    if not rows.numel():
        return rows.new_zeros(len(copies.starts), rows.shape[1])
    # embedding_bag sums in the order of the bag, several times faster than index_add_ on a CPU.
    # Given narrower types, it would round ties away from zero.
    precise = torch.promote_types(rows.dtype, torch.float32)
    sums = F.embedding_bag(
        copies.members,
        rows.to(precise),
        copies.starts,
        mode="sum",
        per_sample_weights=None if weights is None else weights.to(precise),
    )
    return sums.to(rows.dtype)


def sum_copies_backward(
    grad: Tensor, rows: Tensor, copies: RowCopies, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of a weighted `sum_copies` in `rows` and in `weights`.

    Products run in float32 or wider. On a CPU block by block: the wider copies that narrow types
    need stay in its cache.

    Args:
        grad: `[sources, h]`, of the sums.
        rows: `[copies, h]`, as they were summed.
        copies: as they were summed.
        weights: `[copies]`, as they were given.

    Returns:
        `[copies, h]` of the rows' type and `[copies]` of the weights'.
    """
    grad_rows = copy_rows(grad, copies)
    # Weights are ordered by source; here they are wanted in the order of the rows.
    factors = torch.empty_like(weights).scatter_(0, copies.members, weights)
    precise = torch.promote_types(torch.promote_types(rows.dtype, weights.dtype), torch.float32)
    size = _CPU_BLOCK if rows.device.type == "cpu" else max(1, len(rows))
    products = [weights.new_empty(0, dtype=precise)]
    for grads, block, scale in zip(
        torch.split(grad_rows, size),
        torch.split(rows, size),
        torch.split(factors, size),
        strict=True,
    ):
        wide = grads.to(precise)
        # One wide product and one in place: new tensors cost more time here than products.
        products.append((block * wide).sum(1))
        grads.copy_(wide.mul_(scale[:, None]))
    return grad_rows, torch.cat(products)[copies.members].to(weights.dtype)
