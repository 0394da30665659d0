"""Tensors that torch spreads over ranks by itself, as FSDP2 does with parameters."""

from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a torch `DTensor`: each rank holds a part of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_sharded_module(module: nn.Module) -> bool:
    """Whether torch's `fully_shard` was called on `module`: it gathers weights when it runs."""
    if not type(module).__name__.startswith("FSDP"):  # the import is slow
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank, which must all ask for it, where it is spread over them."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    gathered: Tensor = sharded.full_tensor()
    return gathered
