"""Tensors that torch spreads over ranks by itself, as FSDP2 does with parameters."""

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a torch `DTensor`: each rank holds a part of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
