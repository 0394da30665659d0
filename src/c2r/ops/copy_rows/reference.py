"""Plain torch reference of copying rows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowCopies:
    """Rows that are copies of source rows, readable from both sides.

    Of three sources, of which the first went to two places and the second to none, the copies
    `source = [2, 0, 0]` have `members = [1, 2, 0]` and `starts = [0, 2, 2]`.

    Attributes:
        source: `[copies]` int64, the source row of each copy.
        members: `[copies]` int64, the copies ordered by source, in the order of summation.
        starts: `[sources]` int64, where the copies of each source start within `members`.
        is_permutation: every source is known to have one copy.
    """

    source: Tensor
    members: Tensor
    starts: Tensor
    is_permutation: bool = False


def copies_of(source: Tensor, num_sources: int) -> RowCopies:
    """The copies whose sources are `source` `[copies]`; those of one source keep their order."""
    counts = torch.zeros(num_sources, dtype=torch.int64, device=source.device)
    counts.scatter_add_(0, source, torch.ones_like(source))
    return RowCopies(
        source=source,
        members=source.argsort(stable=True),
        starts=counts.cumsum(0) - counts,
    )


def copy_rows(rows: Tensor, copies: RowCopies) -> Tensor:
    """`[copies, h]` of `rows` `[sources, h]`."""
    return rows.index_select(0, copies.source)
