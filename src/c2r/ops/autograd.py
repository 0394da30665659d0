"""Copying rows and summing copies with gradients: each is the backward of the other.

The names are those of the operations; callers write `autograd.copy_rows`. torch's own gradient of
`index_select` is an `index_add`, whose order of summation, and so its last bit, varies on a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from c2r.ops import copy_rows as copying
from c2r.ops import sum_copies as summing
from c2r.ops.copy_rows import RowCopies


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, copies: RowCopies) -> Tensor:
        _save(ctx, copies)
        return copying.copy_rows(rows, copies)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        copies, _ = _saved(ctx)
        return summing.sum_copies(grad.contiguous(), copies), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor | None, copies: RowCopies) -> Tensor:
        # Rows are needed for the gradient of weights only; without weights they are let go.
        _save(ctx, copies, *(() if weights is None else (rows, weights)))
        return summing.sum_copies(rows, copies, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        copies, factors = _saved(ctx)
        if not factors:
            return copying.copy_rows(grad, copies), None, None
        rows, weights = factors
        return *summing.sum_copies_backward(grad, rows, copies, weights), None


def _save(ctx: Any, copies: RowCopies, *factors: Tensor) -> None:
    # One by one, not as a value on `ctx`: activation checkpoints drop saved tensors only.
    ctx.is_permutation = copies.is_permutation
    ctx.save_for_backward(copies.source, copies.members, copies.starts, *factors)


def _saved(ctx: Any) -> tuple[RowCopies, list[Tensor]]:
    source, members, starts, *factors = ctx.saved_tensors
    copies = RowCopies(
        source=source, members=members, starts=starts, is_permutation=ctx.is_permutation
    )
    return copies, factors


def copy_rows(rows: Tensor, copies: RowCopies) -> Tensor:
    """`[copies, h]` of `rows` `[sources, h]`: `c2r.ops.copy_rows`, differentiable."""
    result: Tensor = _Copy.apply(rows, copies)  # type: ignore[no-untyped-call]
    return result


def sum_copies(rows: Tensor, copies: RowCopies, weights: Tensor | None = None) -> Tensor:
    """`[sources, h]` of `rows` `[copies, h]`: `c2r.ops.sum_copies`, differentiable.

    `weights` `[copies]` are in the order of `copies.members`; 1 where absent.
    """
    result: Tensor = _Sum.apply(rows, weights, copies)  # type: ignore[no-untyped-call]
    return result
