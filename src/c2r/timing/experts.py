"""The experts that all cases share: real products, or those of an emulated device."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from c2r.ops.gated_activation import silu_gated
from c2r.ops.grouped_linear import grouped_linear
from c2r.timing.cases import TimedLayer


class SwiGLUExperts:
    """The experts of one rank, the same for an id wherever it is placed.

    Args:
        ids: the experts, in the order of their slots.
        shape: of the layer.
    """

    def __init__(self, ids: Iterable[int], shape: TimedLayer) -> None:
        parts = [self._weights(expert, shape) for expert in ids]
        up, down = (torch.stack(part).to(shape.dtype) for part in zip(*parts, strict=True))
        self.up = up.requires_grad_()
        self.down = down.requires_grad_()

    @staticmethod
    def _weights(expert: int, shape: TimedLayer) -> tuple[Tensor, Tensor]:
        """`[h, 2 f]` and `[f, h]`."""
        drawn = torch.Generator().manual_seed(expert)
        h, f = shape.hidden_size, shape.intermediate_size
        up = torch.randn(h, 2 * f, generator=drawn) / h**0.5
        return up, torch.randn(f, h, generator=drawn) / f**0.5

    def __call__(self, rows: Tensor, counts: Tensor) -> Tensor:
        """`[rows, h]` for rows `[rows, h]` grouped by expert and counts `[experts]`."""
        activated = silu_gated(grouped_linear(rows, self.up, counts))
        return grouped_linear(activated, self.down, counts)

    def forget_gradients(self) -> None:
        """Frees the gradients of the last step."""
        self.up.grad = self.down.grad = None


class EmulatedExperts:
    """Experts that take the time of their rows on a device of a stated rate, and no processor.

    Ranks that share a few cores compute at the cost of each other's exchanges; a device computes
    beside them. Backward takes twice as long as forward: products for the rows and for the weights.
    The rows come back as they were.

    Args:
        rows_per_second: rows that a device takes through its experts, forward.
    """

    def __init__(self, rows_per_second: float) -> None:
        self._seconds_per_row = 1 / rows_per_second

    def __call__(self, rows: Tensor, _: Tensor) -> Tensor:
        """`[rows, h]`, after their time."""
        result: Tensor = _Taking.apply(rows, self._seconds_per_row)  # type: ignore[no-untyped-call]
        return result


class _Taking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, seconds_per_row: float) -> Tensor:
        ctx.seconds = len(rows) * seconds_per_row
        time.sleep(ctx.seconds)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(2 * ctx.seconds)
        return grad, None
