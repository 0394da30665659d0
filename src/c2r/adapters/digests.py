"""Digests by which a plan knows the model that it was made for; the same in every program."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def structure_digest(family: str, shapes: Sequence[tuple[str, int, int]]) -> str:
    """Of a model's family and each router's name, E and k."""
    return hashlib.sha256(json.dumps([family, shapes]).encode()).hexdigest()[:16]


def weights_digest(routers: Iterable[tuple[str, Mapping[str, Tensor]]]) -> str:
    """Of each router's name and its tensors by their names in it.

    Values are cast to bfloat16, so that the dtype a model was loaded in does not matter.
    """
    weights = hashlib.sha256()
    for router, tensors in routers:
        for name, tensor in sorted(tensors.items()):
            weights.update(f"{router}.{name}".encode())
            weights.update(_bytes(tensor))
    return weights.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu()
    if values.is_floating_point():
        values = values.to(torch.bfloat16).contiguous().view(torch.int16)
    return values.numpy().tobytes()
