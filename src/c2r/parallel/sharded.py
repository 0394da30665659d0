"""Tensors that torch spreads over ranks by itself, as FSDP2 does with parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
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
    Gradients are summed over `comm`, and divided by its size or by `num_losses`. Parameters on
    `meta` get their values after it; see `keeping_parts`.
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


@torch.no_grad()
def as_part(rows: Tensor, num_rows: int, comm: ProcessGroupComm) -> Tensor:
    """A tensor of `num_rows` rows, of which each rank holds those that `rows_of` tells: `rows`."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = DeviceMesh.from_group(comm.group, comm.device.type)
    shape = torch.Size((num_rows, *rows.shape[1:]))
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=strides)


@contextmanager
def keeping_parts(model: nn.Module) -> Iterator[None]:
    """Inside the block, parameters that ranks hold in parts are whole and empty (on `meta`).

    There `shard_modules` is to be called on them, for as many ranks. After the block each rank has
    its parts again, in the memory where they were. So a model is sharded that fits no rank.
    """
    parts: dict[nn.Module, dict[str, Tensor]] = {}
    empty: dict[Tensor, nn.Parameter] = {}  # weights that are tied stay tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if is_sharded(parameter):
                parts.setdefault(module, {})[name] = own_part(parameter.detach())
                if parameter not in empty:
                    hollow = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                    empty[parameter] = nn.Parameter(hollow, parameter.requires_grad)
                module.register_parameter(name, empty[parameter])
    empty.clear()
    yield
    filled: dict[Tensor, nn.Parameter] = {}
    for module, own in parts.items():
        state = {}
        while own:
            name, part = own.popitem()
            sharded = module.get_parameter(name)
            if sharded not in filled:
                filled[sharded] = nn.Parameter(_like(sharded, part), sharded.requires_grad)
            state[name] = filled[sharded]
        module.load_state_dict(state, strict=False, assign=True)


@torch.no_grad()
def _like(sharded: Any, part: Tensor) -> Tensor:
    """A tensor that is sharded as another is, with this rank's part."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(sharded.device_mesh.device_type),
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )


def free_gathered(model: nn.Module) -> None:
    """Frees weights that FSDP2 has gathered and kept for what comes next, as the outermost does."""
    if is_sharded_module(model):
        sharded: Any = model
        sharded.reshard()


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
