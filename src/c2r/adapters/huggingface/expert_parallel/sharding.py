"""What is not of experts, sharded over all processes by FSDP2."""

from collections.abc import Iterator

from torch import nn

from c2r.adapters.huggingface.expert_parallel.state import expert_parameters
from c2r.adapters.huggingface.parallel_models import mesh_of
from c2r.parallel import is_sharded_module, shard_modules


def shard(model: nn.Module) -> None:
    """Shards the parameters of a parallel model that are not of experts, over all its processes.

    FSDP2 then gathers those of a layer when it runs, and averages their gradients over the
    processes; so `reduce_gradients` is to be called with `average=True`. Nothing is done where the
    model is sharded already. Every process must call this before an optimizer is made, and then
    run as many forward and backward passes as the others.

    Raises:
        InputError: the model is not parallel.
    """
    world = mesh_of(model).world
    if not is_sharded_module(model):
        shard_modules([*_layers(model), model], expert_parameters(model), world)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the model's outermost lists of modules."""
    seen: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in seen:
            for layer in module:
                seen.update(layer.modules())
                yield layer
