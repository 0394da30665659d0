"""Copying rows and summing copies, each the backward of the other."""

from typing import Any

import torch
from torch import Tensor

from c2r.ops.copy_rows import Copies, copy_rows
from c2r.ops.sum_copies import sum_copies, sum_copies_backward


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, copies: Copies) -> Tensor:
        _keep(ctx, copies)
        return copy_rows(rows, copies)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        copies, _ = _kept(ctx)
        return sum_copies(grad.contiguous(), copies), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor | None, copies: Copies) -> Tensor:
        _keep(ctx, copies, *(() if weights is None else (rows, weights)))
        return sum_copies(rows, copies, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        copies, factors = _kept(ctx)
        if not factors:
            return copy_rows(grad, copies), None, None
        return *sum_copies_backward(grad, factors[0], copies, factors[1]), None


def _keep(ctx: Any, copies: Copies, *factors: Tensor) -> None:
    """Saves all tensors where activation checkpoints can drop them."""
    ctx.is_permutation = copies.is_permutation
    ctx.save_for_backward(copies.source, copies.members, copies.starts, *factors)


def _kept(ctx: Any) -> tuple[Copies, list[Tensor]]:
    source, members, starts, *factors = ctx.saved_tensors
    copies = Copies(
        source=source, members=members, starts=starts, is_permutation=ctx.is_permutation
    )
    return copies, factors


def copied(rows: Tensor, copies: Copies) -> Tensor:
    """Differentiable `copy_rows`."""
    result: Tensor = _Copy.apply(rows, copies)  # type: ignore[no-untyped-call]
    return result


def summed(rows: Tensor, copies: Copies, weights: Tensor | None = None) -> Tensor:
    """Differentiable `sum_copies`."""
    result: Tensor = _Sum.apply(rows, weights, copies)  # type: ignore[no-untyped-call]
    return result
