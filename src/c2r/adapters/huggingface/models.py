"""What is asked of any model, whatever its layers: its family, its modes, what is around it.

A wrapper runs the model that it holds: torch's compiler, DDP and DataParallel, PEFT. What c2r does
to a model it does to the innermost, so that a plan holds through any wrapper, put on before or
after.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from c2r.errors import ModelError

_COMPILED = "_orig_mod"
_AROUND = (_COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_INSIDE = re.compile(r"(\.base_layer|\.original_module|\.modules_to_save\.[^.]+)+$")
_OUTER = re.compile(r"^(module\.)*(base_model\.model\.)?")


def model_type(model: nn.Module) -> str:
    """The family of a model: its config's `model_type`, else its class name."""
    inner = unwrapped(model)
    return str(getattr(getattr(inner, "config", None), "model_type", type(inner).__name__))


def unwrapped(model: nn.Module) -> nn.Module:
    """The innermost model, which all wrappers around it run; `model` itself where none is.

    Raises `ModelError` for PEFT's learned prompts.
    """
    while True:
        inner = _held(model)
        if inner is None:
            return model
        model = inner


def _held(model: nn.Module) -> nn.Module | None:
    # As a child, not as an attribute: what PEFT wraps around a compiled model hands those through.
    compiled = model._modules.get(_COMPILED)
    if compiled is not None:
        return compiled
    if isinstance(model, DistributedDataParallel | DataParallel):
        inner: nn.Module = model.module
        return inner
    if not hasattr(type(model), "get_base_model"):
        return None
    adapted: Any = model  # of PEFT, which need not be installed
    if getattr(getattr(adapted, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError(
            "PEFT puts prompts that were learned before the model's tokens, which c2r cannot tell "
            "from them; give the model without the prompts"
        )
    base: nn.Module = adapted.get_base_model()
    return base


def plain_path(path: str) -> str:
    """The path of a module without the names that wrappers put into it.

    `base_model.model.model.layers.0.mlp.gate.modules_to_save.default` is
    `model.layers.0.mlp.gate`.
    """
    parts = [part for part in _own_path(path).split(".") if part not in _AROUND]
    return _OUTER.sub("", ".".join(parts))


def _own_path(path: str) -> str:
    """The path of what PEFT has put a module's adapters or copies around."""
    return _INSIDE.sub("", path)


def block_path(path: str) -> str:
    """The path of the module that holds a router, whatever adapters are around the router."""
    return _own_path(path).rpartition(".")[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode is put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its token ids, though its weights be elsewhere while it does not run."""
    embeddings = getattr(unwrapped(model), "get_input_embeddings", lambda: None)()
    return running_device(embeddings if isinstance(embeddings, nn.Module) else model)


def running_device(module: nn.Module) -> torch.device:
    """Where a module runs: where accelerate brings its weights, or where they are."""
    for part in module.modules():
        hook: Any = getattr(part, "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
        own = next(part.parameters(recurse=False), None)
        if own is not None:
            return own.device
    return torch.device("cpu")
