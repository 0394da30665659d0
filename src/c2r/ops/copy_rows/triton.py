"""Copying rows by a kernel that reads every source once."""

import triton
import triton.language as tl
from torch import Tensor

from c2r.ops.copy_rows.reference import RowCopies
from c2r.ops.launching import launch, span

_MAX_BYTES = 4096
"""Of a row, per program: 32 bytes a thread of four warps, two loads of 16. Chosen by hand: with
narrower ones `members` is read more often, wider ones take more registers."""


def copy_rows(rows: Tensor, copies: RowCopies) -> Tensor:
    """See the reference."""
    rows = rows.contiguous()
    num_copies, (num_sources, width) = len(copies.source), rows.shape
    result = rows.new_empty(num_copies, width)
    if result.numel():
        columns = min(triton.next_power_of_2(width), _MAX_BYTES // rows.itemsize)
        grid = (num_sources, triton.cdiv(width, columns))
        launch(
            _copy, grid, rows, copies.members, copies.starts, result,
            num_sources, num_copies, width, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return result


# Counts differ at every step: specialised, a count of 1 or a multiple of 16 would compile anew.
@triton.jit(do_not_specialize=["num_sources", "num_copies"])
def _copy(rows, members, starts, result, num_sources, num_copies, width, COLUMNS: tl.constexpr):
    """A program per source and block of columns."""
    source = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = span(starts, source, num_sources, num_copies)
    values = tl.load(rows + source * width + columns, mask=columns < width)
    for position in range(begin, end):
        copy = tl.load(members + position)
        tl.store(result + copy * width + columns, values, mask=columns < width)
