"""Grouped matrix products: torch's own where it has one for the type, a loop elsewhere."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_GROUPED_DTYPES = (torch.bfloat16, torch.float32)
_ALIGNMENT_BYTES = 16  # of every row, which torch's grouped product asks for


class _Contiguous(torch.autograd.Function):
    """Makes the gradient contiguous: torch's grouped product rejects an expanded one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # An expanded gradient without rows counts as contiguous already.
        return grad.contiguous() if grad.numel() else grad.new_empty(grad.shape)


def grouped_linear(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiplies the rows of each expert by its matrix.

    Args:
        rows: `[rows, n]` ordered by expert.
        weight: `[experts, n, m]`.
        counts: `[experts]` int64, rows of each; they sum to the rows.

    Returns:
        `[rows, m]`.
    """
    if _is_grouped(rows, weight):
        offsets = counts.cumsum(0, dtype=torch.int32)
        product: Tensor = _Contiguous.apply(  # type: ignore[no-untyped-call]
            F.grouped_mm(rows, weight, offs=offsets)
        )
        return product
    parts = torch.split(rows, counts.tolist())
    return torch.cat([part @ matrix for part, matrix in zip(parts, weight, strict=True)])


def _is_grouped(rows: Tensor, weight: Tensor) -> bool:
    widths = (weight.shape[1], weight.shape[2])
    return (
        hasattr(F, "grouped_mm")
        and rows.dtype in _GROUPED_DTYPES
        and all(width * rows.itemsize % _ALIGNMENT_BYTES == 0 for width in widths)
    )
