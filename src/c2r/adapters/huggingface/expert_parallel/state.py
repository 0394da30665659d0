"""Gradients and state dicts of a model whose experts are spread over ranks."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from c2r.adapters.huggingface.expert_parallel.expert_weights import gather_experts
from c2r.adapters.huggingface.expert_parallel.spread import local_experts
from c2r.adapters.huggingface.parallel_models import mesh_of
from c2r.parallel import Comm, is_sharded, own_rows, whole

_BUCKET_BYTES = 25 * 2**20
"""Of gradients per message, as torch's DDP has it: little beside the model, and long enough that a
message's fixed cost does not count."""


def expert_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that differ from rank to rank; pass them to FSDP2 as `ignored_params`."""
    return {
        parameter
        for _, module, _ in local_experts(model)
        for parameter in module.parameters(recurse=False)
    }


class HeldRows(NamedTuple):
    """Rows of a parameter that a rank holds, numbered as in the whole one.

    Attributes:
        numbers: in the order held; of experts their ids, the rank's own first, then replicas.
        num_own: how many of them no other rank of the group has as its own; where FSDP2 shards
            them, no other process.
    """

    numbers: Sequence[int]
    num_own: int


def held_rows(model: nn.Module) -> dict[nn.Parameter, HeldRows]:
    """Which rows this process holds of the parameters that it does not hold whole."""
    held = {
        parameter: HeldRows(rows, len(rows))
        for parameter in model.parameters()
        if (rows := own_rows(parameter)) is not None
    }
    for _, module, local in local_experts(model):
        ids, num_own = local.homes.on(local.comm.rank), local.homes.num_own(local.comm.rank)
        for parameter in module.parameters(recurse=False):
            part = held[parameter].numbers if parameter in held else range(len(ids))
            held[parameter] = HeldRows(
                [int(ids[row]) for row in part], sum(row < num_own for row in part)
            )
    return held


@torch.no_grad()
def reduce_gradients(model: nn.Module, average: bool = False) -> None:
    """Completes the gradients of a parallel model after backward, on every rank.

    The gradients of experts are sums over the tokens of their group of ranks already; those of
    replicas are added to them here, in the order of the ranks, and become zero, and then those of
    all groups are summed. Those of all other parameters are summed over all ranks: then all are as
    one process would compute them from the sum of the ranks' losses. With `average`, all are
    divided by the number of ranks: as from the mean of the losses. What FSDP2 shards it has made
    so already, and only replicas are left to be added.

    A step of the optimizer is expected to follow. The next forward pass begins by copying the
    weights of experts to their replicas.

    Raises:
        InputError: the model is not parallel.
    """
    mesh = mesh_of(model)
    for _, _, local in local_experts(model):
        local.reduce_gradients()
    experts = expert_parameters(model)
    trained = [p for p in model.parameters() if p.requires_grad and not is_sharded(p)]
    own = [p for p in trained if p in experts]
    shared = [p for p in trained if p not in experts]
    if mesh.num_groups > 1:
        _sum_over_ranks(own, mesh.peers)
    _sum_over_ranks(shared, mesh.world)
    if average:
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad /= mesh.world.size


def _sum_over_ranks(parameters: Sequence[nn.Parameter], comm: Comm) -> None:
    for parameter in parameters:  # A rank that did not use a parameter still takes part in its sum.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads = [p.grad for p in parameters if p.grad is not None]
    for bucket in _buckets(grads):
        flat = torch.cat([grad.flatten() for grad in bucket])
        comm.all_reduce(flat)
        for grad, total in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
            grad.copy_(total.view_as(grad))


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Small tensors of one type together, as one message; the same on all ranks."""
    # Types in the same order on all ranks; their tensors are in the order of the model.
    for dtype in sorted({grad.dtype for grad in grads}, key=str):
        bucket: list[Tensor] = []
        num_bytes = 0
        for grad in (grad for grad in grads if grad.dtype == dtype):
            if bucket and num_bytes + grad.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, num_bytes = [], 0
            bucket.append(grad)
            num_bytes += grad.nbytes
        yield bucket


def refresh_replicas(model: nn.Module) -> None:
    """Copies the weights of experts to their replicas where a step has made them differ.

    Every rank must call this. The next forward pass would do it; what reads a rank's own
    parameters before cannot wait for that.
    """
    for _, _, experts in local_experts(model):
        if experts.has_stale_replicas:
            experts.refresh_replicas()


def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the whole model, under its own names and in its own order, on rank 0.

    Every rank must call this; the others get an empty dict. `model.load_state_dict` takes such a
    dict on every rank, whatever the number of ranks that it was gathered from.

    Raises:
        InputError: the model is not parallel.
    """
    mesh = mesh_of(model)
    homes = {
        f"{name}.{parameter}": experts.homes
        for name, module, experts in local_experts(model)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    state = OrderedDict()
    for key, tensor in model.state_dict().items():
        value = whole(tensor)
        if key in homes and mesh.group == 0:
            value = gather_experts(value, mesh.ranks, homes[key])
        if mesh.world.rank == 0:
            state[key] = value
    return state
