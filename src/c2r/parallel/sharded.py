"""Tensors that torch spreads over ranks by itself, as FSDP2 does with parameters."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from c2r.parallel.comm import ProcessGroupComm


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


def shard_modules(
    modules: Sequence[nn.Module],
    ignored: set[nn.Parameter],
    comm: ProcessGroupComm,
    num_losses: int | None = None,
) -> None:
    """Shards the parameters of modules by FSDP2, innermost first; each is gathered as one.

    The `ignored` parameters stay as they are, and so do single numbers, which have no rows.
    Gradients are summed over `comm`, and divided by its size or by `num_losses`.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(comm.group, comm.device.type)
    for module in modules:
        numbers = {parameter for parameter in module.parameters() if not parameter.ndim}
        sharded = fully_shard(module, mesh=mesh, ignored_params=ignored | numbers)
        if num_losses is not None:
            sharded.set_gradient_divide_factor(num_losses)
            # Only NCCL divides by a factor while it sums, and up to torch 2.13 not in bfloat16.
            sharded.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank, which must all ask for it, where it is spread over them."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    gathered: Tensor = sharded.full_tensor()
    return gathered


def own_part(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, in the memory where it is."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    local: Tensor = sharded.to_local()
    return local


def own_rows(tensor: Tensor) -> range | None:
    """The rows of a tensor that this rank has, as FSDP2 shards it; None where it has all."""
    if not is_sharded(tensor):
        return None
    sharded: Any = tensor
    mesh = sharded.device_mesh
    return rows_of(len(sharded), mesh.get_local_rank(), mesh.size())


def rows_of(num_rows: int, rank: int, num_ranks: int) -> range:
    """The rows that FSDP2 gives to a rank: neighbours, on the first ranks equally many."""
    most = -(-num_rows // num_ranks)
    start = min(rank * most, num_rows)
    return range(start, min(start + most, num_rows))
