"""Copying rows and summing copies, each the backward of the other."""

from typing import Any

import torch
from torch import Tensor

from c2r.ops.combine import sum_copies, sum_copies_backward
from c2r.ops.permute import Copies, copy_rows


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, copies: Copies) -> Tensor:
        ctx.copies = copies
        return copy_rows(rows, copies)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_copies(grad.contiguous(), ctx.copies), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor | None, copies: Copies) -> Tensor:
        ctx.copies, ctx.is_weighted = copies, weights is not None
        if weights is not None:
            ctx.save_for_backward(rows, weights)
        return sum_copies(rows, copies, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if not ctx.is_weighted:
            return copy_rows(grad, ctx.copies), None, None
        rows, weights = ctx.saved_tensors
        return *sum_copies_backward(grad, rows, ctx.copies, weights), None


def copied(rows: Tensor, copies: Copies) -> Tensor:
    """Differentiable `copy_rows`."""
    result: Tensor = _Copy.apply(rows, copies)  # type: ignore[no-untyped-call]
    return result


def summed(rows: Tensor, copies: Copies, weights: Tensor | None = None) -> Tensor:
    """Differentiable `sum_copies`."""
    result: Tensor = _Sum.apply(rows, weights, copies)  # type: ignore[no-untyped-call]
    return result
