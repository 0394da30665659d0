"""How a model's own calls of torch are read: those by which its routers select and weigh.

A model may give an argument by place or by name, and a tensor where another gives a number. So an
argument is looked at by its type before it is compared, and no tensor is tested for truth. A call
that is not of the form looked for is none of ours, and whatever torch makes of it stands.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

TOP_K = (torch.topk, Tensor.topk)
GATHER = (torch.gather, Tensor.gather)
SCATTER = (torch.scatter, Tensor.scatter)
MASKED_FILL = (torch.masked_fill, Tensor.masked_fill)


def read_top_k(args: Args, kwargs: Kwargs) -> tuple[Tensor, int] | None:
    """Scores `[..., n]` and k of a call for the k largest of the last dimension; else None."""
    given = _by_name(("input", "k", "dim", "largest", "sorted"), args, kwargs)
    scores, k = _along_last(given), given.get("k")
    is_largest = given.get("largest", True) is True
    if scores is None or not is_largest or not isinstance(k, int | np.integer):
        return None
    return scores, int(k)


def read_gather(args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor] | None:
    """Input `[..., n]` and index `[..., m]` of a gather from the last dimension; else None."""
    given = _by_name(("input", "dim", "index"), args, kwargs)
    source, index = _along_last(given), given.get("index")
    if source is None or not isinstance(index, Tensor) or index.ndim != source.ndim:
        return None
    return source, index


def read_removal(args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor] | None:
    """Scores `[..., n]` and index `[..., 1]` of a scatter of -inf to one place each; else None."""
    given = _by_name(("input", "dim", "index", "value"), args, kwargs)
    scores, index, value = _along_last(given), given.get("index"), given.get("value")
    if scores is None or not isinstance(index, Tensor) or index.ndim != scores.ndim:
        return None
    is_removal = isinstance(value, float) and value == -math.inf and "reduce" not in given
    return (scores, index) if is_removal and index.shape[-1] == 1 else None


def read_mask(args: Args, kwargs: Kwargs) -> tuple[Tensor, float] | None:
    """Mask and number of a masked fill; else None."""
    given = _by_name(("input", "mask", "value"), args, kwargs)
    mask, value = given.get("mask"), given.get("value")
    if not isinstance(mask, Tensor) or not isinstance(value, int | float):
        return None
    return mask, float(value)


def _by_name(names: tuple[str, ...], args: Args, kwargs: Kwargs) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _along_last(given: Mapping[str, Any]) -> Tensor | None:
    """The input of a call that works along its last dimension and returns its result."""
    tensor, dim = given.get("input"), given.get("dim", -1)
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return None
    is_last = tensor.ndim > 0 and isinstance(dim, int) and dim in (-1, tensor.ndim - 1)
    # A call that writes into `out` could not be answered by another tensor.
    return tensor if is_last and given.get("out") is None else None
