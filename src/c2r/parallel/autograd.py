"""Copying rows and summing copies, each the backward of the other."""

from typing import Any

import torch
from torch import Tensor

from c2r.ops.combine import sum_copies
from c2r.ops.permute import Copies, copy_rows

_CPU_BLOCK = 128


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_rows = copy_rows(grad, ctx.copies)
        if not ctx.is_weighted:
            return grad_rows, None, None
        rows, weights = ctx.saved_tensors
        by_row = torch.empty_like(weights).scatter_(0, ctx.copies.members, weights)
        products = _scale_and_multiply(grad_rows, by_row, rows)
        return grad_rows, products[ctx.copies.members].to(weights.dtype), None


def _scale_and_multiply(grad_rows: Tensor, factors: Tensor, rows: Tensor) -> Tensor:
    """Multiplies each of `grad_rows` `[n, h]` by its factor; gives its product with its row before.

    On a CPU block by block: the wider copies that narrow types need stay in its cache.
    """
    precise = torch.promote_types(rows.dtype, factors.dtype)
    size = _CPU_BLOCK if rows.device.type == "cpu" else max(1, len(rows))
    products = [factors.new_empty(0, dtype=precise)]
    for grads, block, scale in zip(
        torch.split(grad_rows, size),
        torch.split(rows, size),
        torch.split(factors, size),
        strict=True,
    ):
        wide = grads.to(precise)
        products.append((block.to(precise) * wide).sum(1))
        grads.copy_(wide * scale[:, None])
    return torch.cat(products)


def copied(rows: Tensor, copies: Copies) -> Tensor:
    """Differentiable `copy_rows`."""
    result: Tensor = _Copy.apply(rows, copies)  # type: ignore[no-untyped-call]
    return result


def summed(rows: Tensor, copies: Copies, weights: Tensor | None = None) -> Tensor:
    """Differentiable `sum_copies`."""
    result: Tensor = _Sum.apply(rows, weights, copies)  # type: ignore[no-untyped-call]
    return result
