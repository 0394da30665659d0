"""The experts that all cases share: real products, or those of an emulated device."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from c2r.ops.gated_activation import silu_gated
from c2r.ops.grouped_linear import grouped_linear


class SwiGLUExperts:
    """The experts of one rank, the same for an id wherever it is placed.

    Args:
        ids: the experts, in the order of their slots.
        hidden_size: of the layer.
        intermediate_size: inner width of each.
        dtype: of the weights.
    """

    def __init__(
        self, ids: Iterable[int], hidden_size: int, intermediate_size: int, dtype: torch.dtype
    ) -> None:
        parts = [self._weights(expert, hidden_size, intermediate_size) for expert in ids]
        up, down = (torch.stack(part).to(dtype) for part in zip(*parts, strict=True))
        self.up = up.requires_grad_()
        self.down = down.requires_grad_()

    @staticmethod
    def _weights(expert: int, h: int, f: int) -> tuple[Tensor, Tensor]:
        """`[h, 2 f]` and `[f, h]`."""
        drawn = torch.Generator().manual_seed(expert)
        up = torch.randn(h, 2 * f, generator=drawn) / h**0.5
        return up, torch.randn(f, h, generator=drawn) / f**0.5

    def __call__(self, rows: Tensor, counts: Tensor) -> Tensor:
        """`[rows, h]` for rows `[rows, h]` grouped by expert and counts `[experts]`."""
        activated = silu_gated(grouped_linear(rows, self.up, counts))
        return grouped_linear(activated, self.down, counts)

    def forget_gradients(self) -> None:
        """Frees the gradients of the last step."""
        self.up.grad = self.down.grad = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRate:
    """How fast an emulated device is.

    Attributes:
        rows_per_second: rows that it takes through its experts, forward; backward half as many.
        launch_seconds: what each start of the experts takes besides, however few the rows.
    """

    rows_per_second: float
    launch_seconds: float = 0.0


class EmulatedExperts:
    """Experts that take the time of their rows on a device of a stated rate, and no processor.

    Ranks that share a few cores compute at the cost of each other's exchanges; a device computes
    beside them. Backward takes twice as long as forward: products for the rows and for the weights.
    The rows come back as they were. What a sleep takes too long, the next takes less, so that times
    do not add up to more than those of the rows.

    Args:
        rate: of the device.
    """

    def __init__(self, rate: DeviceRate) -> None:
        self._rate = rate
        self._overslept = 0.0

    def __call__(self, rows: Tensor, _: Tensor) -> Tensor:
        """`[rows, h]`, after their time."""
        result: Tensor = _Taking.apply(rows, self)  # type: ignore[no-untyped-call]
        return result

    def take(self, num_rows: int, products: int) -> None:
        """Returns when the device is through with so many products of every row."""
        rate = self._rate
        now = time.perf_counter()
        seconds = rate.launch_seconds + products * num_rows / rate.rows_per_second
        deadline = now + seconds - self._overslept
        while now < deadline:
            time.sleep(deadline - now)
            now = time.perf_counter()
        self._overslept = now - deadline


class _Taking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, experts: EmulatedExperts) -> Tensor:
        ctx.experts, ctx.num_rows = experts, len(rows)
        experts.take(ctx.num_rows, products=1)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.experts.take(ctx.num_rows, products=2)
        return grad, None
