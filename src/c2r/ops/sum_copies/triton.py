"""Summing copies by kernels, without atomics: a program owns what it sums."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from c2r.ops.copy_rows import RowCopies
from c2r.ops.launching import launch, span

_MAX_BYTES = 4096
"""Of a row, per program, as in `copy_rows`."""


def sum_copies(rows: Tensor, copies: RowCopies, weights: Tensor | None = None) -> Tensor:
    """See the reference."""
    rows = rows.contiguous()
    num_sources, (num_copies, width) = len(copies.starts), rows.shape
    sums = rows.new_empty(num_sources, width)
    if sums.numel():
        columns = min(triton.next_power_of_2(width), _MAX_BYTES // rows.itemsize)
        grid = (num_sources, triton.cdiv(width, columns))
        launch(
            _sum, grid, rows, copies.members, copies.starts, _contiguous(weights, rows), sums,
            num_sources, num_copies, width,
            IS_WEIGHTED=weights is not None, WIDE=rows.dtype == torch.float64, COLUMNS=columns,
            num_warps=4,
        )  # fmt: skip
    return sums


def sum_copies_backward(
    grad: Tensor, rows: Tensor, copies: RowCopies, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """See the reference."""
    grad, rows, weights = grad.contiguous(), rows.contiguous(), weights.contiguous()
    num_sources, (num_copies, width) = len(copies.starts), rows.shape
    grad_rows, grad_weights = torch.empty_like(rows), torch.empty_like(weights)
    columns = min(triton.next_power_of_2(max(width, 1)), _MAX_BYTES // rows.itemsize)
    launch(
        _sum_backward, (num_sources if num_copies else 0,),
        grad, rows, copies.members, copies.starts, weights, grad_rows, grad_weights,
        num_sources, num_copies, width,
        WIDE=torch.float64 in (rows.dtype, weights.dtype), COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return grad_rows, grad_weights


def _contiguous(weights: Tensor | None, unused: Tensor) -> Tensor:
    return unused if weights is None else weights.contiguous()


@triton.jit(do_not_specialize=["num_sources", "num_copies"])
def _sum(
    rows, members, starts, weights, sums, num_sources, num_copies, width,
    IS_WEIGHTED: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program per source and block of columns."""
    source = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = span(starts, source, num_sources, num_copies)
    precise: tl.constexpr = tl.float64 if WIDE else tl.float32
    total = tl.zeros([COLUMNS], precise)
    for position in range(begin, end):
        copy = tl.load(members + position)
        values = tl.load(rows + copy * width + columns, mask=columns < width).to(precise)
        if IS_WEIGHTED:
            values *= tl.load(weights + position).to(precise)
        total += values
    tl.store(sums + source * width + columns, total.to(sums.dtype.element_ty), mask=columns < width)


@triton.jit(do_not_specialize=["num_sources", "num_copies"])
def _sum_backward(
    grad, rows, members, starts, weights, grad_rows, grad_weights,
    num_sources, num_copies, width, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program per source; it reads every copy once, and its own gradient from the cache."""
    source = tl.program_id(0).to(tl.int64)
    begin, end = span(starts, source, num_sources, num_copies)
    precise: tl.constexpr = tl.float64 if WIDE else tl.float32
    # The gradient of a weight is a sum over the whole row. So columns are a loop here, no part of
    # the grid as in `_sum`: programs that share a row would need atomics, whose order varies.
    for position in range(begin, end):
        copy = tl.load(members + position)
        weight = tl.load(weights + position).to(precise)
        product = tl.zeros([COLUMNS], precise)
        for start in range(0, width, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = columns < width
            grads = tl.load(grad + source * width + columns, mask=inside, other=0.0).to(precise)
            at = copy * width + columns
            product += tl.load(rows + at, mask=inside, other=0.0).to(precise) * grads
            tl.store(grad_rows + at, (grads * weight).to(rows.dtype.element_ty), mask=inside)
        tl.store(grad_weights + position, tl.sum(product).to(weights.dtype.element_ty))
