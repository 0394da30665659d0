"""The expert weights and GEMM that all cases share."""

from collections.abc import Iterable

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
