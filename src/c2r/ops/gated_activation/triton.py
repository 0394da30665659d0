"""The gated activation by one kernel each way; rounded once, from float32 for narrower types."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from c2r.ops.launching import launch

_MAX_BYTES = 2048
"""Of half a row, per program: gates and values together are 4,096, as in `copy_rows`."""


def silu_gated(rows: Tensor) -> Tensor:
    """See the reference."""
    result: Tensor = _SiLUGated.apply(rows)
    return result


class _SiLUGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        ctx.save_for_backward(rows)
        result = rows.new_empty(len(rows), rows.shape[1] // 2)
        _launch(_activate, rows, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        _launch(_activate_backward, rows, grad.contiguous(), grad_rows)
        return grad_rows


def _launch(kernel: Any, rows: Tensor, *others: Tensor) -> None:
    width = rows.shape[1] // 2
    columns = min(triton.next_power_of_2(max(width, 1)), _MAX_BYTES // rows.itemsize)
    launch(
        kernel, (len(rows), triton.cdiv(width, columns)), rows, *others, width,
        WIDE=rows.dtype == torch.float64, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


@triton.jit
def _load(rows, width, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Where a program's gates and results are, which exist, gates, and values."""
    precise: tl.constexpr = tl.float64 if WIDE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    at_gate = row * 2 * width + columns
    gate = tl.load(rows + at_gate, mask=inside, other=0.0).to(precise)
    value = tl.load(rows + at_gate + width, mask=inside, other=0.0).to(precise)
    return at_gate, row * width + columns, inside, gate, value


@triton.jit
def _activate(rows, result, width, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """A program per row and block of columns."""
    _, at, inside, gate, value = _load(rows, width, WIDE, COLUMNS)
    activated = gate / (1 + tl.exp(-gate)) * value
    tl.store(result + at, activated.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _activate_backward(rows, grad, grad_rows, width, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """A program per row and block of columns."""
    at_gate, at, inside, gate, value = _load(rows, width, WIDE, COLUMNS)
    slope = tl.load(grad + at, mask=inside, other=0.0).to(gate.dtype)
    sigmoid = 1 / (1 + tl.exp(-gate))
    grad_gate = slope * value * sigmoid * (1 + gate * (1 - sigmoid))
    kind = grad_rows.dtype.element_ty
    tl.store(grad_rows + at_gate, grad_gate.to(kind), mask=inside)
    tl.store(grad_rows + at_gate + width, (slope * gate * sigmoid).to(kind), mask=inside)
