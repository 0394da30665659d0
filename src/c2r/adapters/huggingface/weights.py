"""Weights that are not where they are used: kept by accelerate in memory, on disk, or nowhere."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from c2r.adapters.huggingface.models import model_type
from c2r.errors import ModelError


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """Inside the block the weights of a module are there, wherever accelerate keeps them."""
    with ExitStack() as undo:
        for part in module.modules():
            hook: Any = getattr(part, "_hf_hook", None)
            if hook is not None and _is_empty(part):
                # In place of `align_module_device`, which looks for no hook among several.
                undo.callback(hook.post_forward, part, None)
                hook.pre_forward(part)
        yield


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate brings some weights of a model only when they are used."""
    return any(_is_empty(part) and hasattr(part, "_hf_hook") for part in model.modules())


def check_weights(model: nn.Module) -> None:
    """Raises `ModelError` for weights on the meta device that nothing will bring."""
    total, lost = 0, []
    for path, part in model.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            total += 1
            if parameter.is_meta and not hasattr(part, "_hf_hook"):
                lost.append(f"{path}.{name}".removeprefix("."))
    if lost or not total:
        found = "no weights"
        if lost:
            found = f"{len(lost)} of {total} weights on the meta device, empty (first {lost[0]})"
        raise ModelError(f"{model_type(model)} has {found}; load the model before")


def _is_empty(part: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in part.parameters(recurse=False))
