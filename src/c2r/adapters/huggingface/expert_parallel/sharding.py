"""The weights of a parallel model sharded over all its processes by FSDP2."""

from collections.abc import Iterator

from torch import nn

from c2r.adapters.huggingface.expert_parallel.spread import local_experts
from c2r.adapters.huggingface.expert_parallel.state import expert_parameters
from c2r.adapters.huggingface.parallel_models import mesh_of
from c2r.parallel import is_sharded_module, shard_modules


def shard(model: nn.Module) -> None:
    """Shards the parameters of a parallel model over all its processes.

    Those of a rank's experts are shared out among the groups, row by row; all others among all
    processes. FSDP2 gathers the experts of a layer, or all else of it, when they run, and frees
    them after; it brings gradients to the shards, as from the mean of the ranks' losses. So
    `reduce_gradients` is to be called with `average=True`. Nothing is done where the model is
    sharded already. Every process must call this before an optimizer is made, and then run as many
    forward and backward passes as the others.

    Raises:
        InputError: the model is not parallel.
    """
    mesh = mesh_of(model)
    if is_sharded_module(model):
        return
    own = expert_parameters(model)
    if mesh.num_groups > 1:
        modules = [module for _, module, _ in local_experts(model)]
        shard_modules(modules, set(model.parameters()) - own, mesh.peers, mesh.world.size)
        for _, _, experts in local_experts(model):
            experts.share_out(mesh)
    shard_modules([*_layers(model), model], own, mesh.world)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the model's outermost lists of modules."""
    seen: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in seen:
            for layer in module:
                seen.update(layer.modules())
                yield layer
