"""Plain torch reference of the gated activation."""

import torch.nn.functional as F
from torch import Tensor


def silu_gated(rows: Tensor) -> Tensor:
    """SiLU of the first half of each row, times its second half (SwiGLU); differentiable.

    Args:
        rows: `[rows, 2 f]` floats, gates then values.

    Returns:
        `[rows, f]`.
    """
    gate, value = rows.chunk(2, dim=-1)
    return F.silu(gate) * value
