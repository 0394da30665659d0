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
    if copies.is_permutation and weights is None:
        return rows.index_select(0, copies.members)
    if not rows.numel():
        return rows.new_zeros(len(copies.starts), rows.shape[1])
    # Given narrower types, embedding_bag would round ties away from zero.
    precise = torch.promote_types(rows.dtype, torch.float32)
    sums = F.embedding_bag(
        copies.members,
        rows.to(precise),
        copies.starts,
        mode="sum",
        per_sample_weights=None if weights is None else weights.to(precise),
    )
    return sums.to(rows.dtype)
