"""Plain torch reference of the weighted sum of copies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.ops.permute import Copies


def sum_copies(rows: Tensor, copies: Copies, weights: Tensor | None = None) -> Tensor:
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
    if weights is None:
        return _sum_bags(rows, copies, None)
    precise = torch.promote_types(rows.dtype, weights.dtype)
    return _sum_bags(rows.to(precise), copies, weights.to(precise)).to(rows.dtype)


def _sum_bags(rows: Tensor, copies: Copies, weights: Tensor | None) -> Tensor:
    if not rows.numel():
        return rows.new_zeros(len(copies.starts), rows.shape[1])
    return F.embedding_bag(
        copies.members, rows, copies.starts, mode="sum", per_sample_weights=weights
    )
