"""Gradients and state dicts of a model whose experts are spread over ranks."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from c2r.adapters.huggingface.expert_parallel.expert_weights import gather_experts
from c2r.adapters.huggingface.expert_parallel.spread import local_experts
from c2r.adapters.huggingface.models import model_type
from c2r.errors import InputError
from c2r.parallel import Comm, is_sharded


def expert_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that differ from rank to rank; pass them to FSDP2 as `ignored_params`."""
    return {
        parameter
        for _, module, _ in local_experts(model)
        for parameter in module.parameters(recurse=False)
    }


@torch.no_grad()
def reduce_gradients(model: nn.Module, average: bool = False) -> None:
    """Completes the gradients of a parallel model after backward, on every rank.

    The gradients of experts are sums over the tokens of all ranks already; those of replicas are
    added to them here, in the order of the ranks, and become zero. Those of all other parameters
    are summed here: then all are as one process would compute them from the sum of the ranks'
    losses. With `average`, all are divided by the number of ranks: as from the mean of the losses.
    Parameters that FSDP2 shards are left to it, and FSDP2 averages.

    A step of the optimizer is expected to follow. The next forward pass begins by copying the
    weights of experts to their replicas.

    Raises:
        InputError: the model is not parallel.
    """
    comm = _comm(model)
    for _, _, local in local_experts(model):
        local.reduce_gradients()
    experts = expert_parameters(model)
    whole = [p for p in model.parameters() if p.requires_grad and p not in experts]
    whole = [p for p in whole if not is_sharded(p)]
    _sum_over_ranks(whole, comm)
    if average:
        for parameter in [*whole, *experts]:
            if parameter.grad is not None:
                parameter.grad /= comm.size


def _sum_over_ranks(parameters: list[nn.Parameter], comm: Comm) -> None:
    for parameter in parameters:  # A rank that did not use a parameter still takes part in its sum.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    # One message per type instead of one per parameter; types in the same order on all ranks.
    for dtype in sorted({p.dtype for p in parameters}, key=str):
        grads = [p.grad for p in parameters if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        comm.all_reduce(flat)
        for grad, total in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(total.view_as(grad))


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
    comm = _comm(model)
    state = OrderedDict(model.state_dict())
    for name, module, experts in local_experts(model):
        for parameter, _ in module.named_parameters(recurse=False):
            key = f"{name}.{parameter}"
            state[key] = gather_experts(state[key], comm, experts.homes)
    return state if comm.rank == 0 else {}


def _comm(model: nn.Module) -> Comm:
    for _, _, experts in local_experts(model):
        return experts.comm
    raise InputError(f"{model_type(model)} is not parallel; call c2r.parallelize first")
