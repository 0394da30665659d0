"""The weights of a parallel model sharded over all its processes by FSDP2."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from c2r.adapters.huggingface.expert_parallel.spread import local_experts
from c2r.adapters.huggingface.expert_parallel.state import expert_parameters
from c2r.adapters.huggingface.parallel_models import mesh_of
from c2r.parallel import free_gathered, is_sharded_module, keeping_parts, shard_modules


def shard(model: nn.Module) -> None:
    """Shards the parameters of a parallel model over all its processes.

    Those of a rank's experts are shared out among the groups, row by row; all others among all
    processes. FSDP2 gathers the experts of a layer, all else of it, the embeddings or the head when
    they run, and frees them after; it brings gradients to the shards, as from the mean of the
    ranks' losses. So `reduce_gradients` is to be called with `average=True`. What was loaded in
    parts is never whole; of a model that is sharded already, only what it keeps gathered is freed.
    Every process must call this before an optimizer is made, and then run as many forward and
    backward passes as the others.

    Raises:
        InputError: the model is not parallel.
    """
    mesh = mesh_of(model)
    if is_sharded_module(model):
        free_gathered(model)  # else what is gathered would go on training as it did
        return
    with keeping_parts(model):
        own = expert_parameters(model)
        if mesh.num_groups > 1:
            modules = [module for _, module, _ in local_experts(model)]
            shard_modules(modules, set(model.parameters()) - own, mesh.peers, mesh.world.size)
            for _, _, experts in local_experts(model):
                experts.share_out(mesh)
        shard_modules([*_layers(model), *_ends(model), model], own, mesh.world)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the model's outermost lists of modules."""
    seen: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in seen:
            for layer in module:
                seen.update(layer.modules())
                yield layer


def _ends(model: Any) -> list[nn.Module]:
    """The embeddings and the head, where they have weights of their own.

    They are large where there are many words. What is tied has to be gathered with the model.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = [end for end in ends if end is not None]
    weights = [parameter for end in found for parameter in end.parameters()]
    return found if len(set(weights)) == len(weights) else []
