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
from c2r.parallel import is_sharded_module

_COMPILED = "_orig_mod"
_AROUND = (_COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_INSIDE = re.compile(r"(\.base_layer|\.original_module|\.modules_to_save\.[^.]+)+$")
_OUTER = re.compile(r"^(module\.)*(base_model\.model\.)?")


def model_type(model: nn.Module) -> str:
    """The family of a model: its config's `model_type`, else its class name."""
    inner = unwrapped(model)
    return str(getattr(getattr(inner, "config", None), "model_type", type(inner).__name__))


def dtype_name(model: nn.Module) -> str:
    """What a model runs in, as `bfloat16`; empty where it does not tell."""
    return str(getattr(unwrapped(model), "dtype", "")).removeprefix("torch.")


def unwrapped(model: nn.Module) -> nn.Module:
    """The innermost model, which all wrappers around it run; `model` itself where none is.

    Raises `ModelError` for PEFT's learned prompts.
    """
    *_, inner = wrappers(model)
    return inner


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """A model and all that it wraps, the innermost last. Raises as `unwrapped`."""
    held: nn.Module | None = model
    while held is not None:
        yield held
        held = _held(held)


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
    parts = [part for part in own_path(path).split(".") if part not in _AROUND]
    return _OUTER.sub("", ".".join(parts))


def own_path(path: str) -> str:
    """The path of a module as if PEFT had put no adapters around it and made no copy of it."""
    return _INSIDE.sub("", path)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module of an `own_path` that runs: inside adapters, or the copy that is in use.

    Raises `AttributeError` where there is none.
    """
    module = model.get_submodule(path)
    while True:
        copy = _copy_in_use(module)
        inner = module._modules.get("base_layer") if copy is None else copy
        if inner is None:
            return module
        module = inner


def _copy_in_use(module: Any) -> nn.Module | None:
    """Of a module that PEFT trains a copy of for each adapter, the one that is asked now."""
    copies: Any = module._modules.get("modules_to_save")
    original: nn.Module | None = module._modules.get("original_module")
    if copies is None or original is None:
        return None
    in_use: list[nn.Module] = [
        copies[name] for name in getattr(module, "active_adapters", ()) if name in copies
    ]
    return in_use[0] if in_use and not module.disable_adapters else original


@contextmanager
def eager() -> Iterator[None]:
    """Inside the block compiled models run as they were written, so that what they do is seen."""
    with torch.compiler.set_stance("force_eager"):
        yield


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


def runner(model: nn.Module) -> nn.Module:
    """What to call so that the model runs.

    That is the innermost one, or the one around it by which FSDP brings weights together.
    """
    chain = list(wrappers(model))
    return next((module for module in chain if is_sharded_module(module)), chain[-1])


def is_sharded_model(model: nn.Module) -> bool:
    """Whether FSDP keeps a part of the weights on each rank, so that only the whole model runs."""
    return any(is_sharded_module(module) for module in model.modules())


def running_device(module: nn.Module) -> torch.device:
    """Where a module runs: where accelerate brings its weights, or where they are."""
    return next(_devices(module), torch.device("cpu"))


def running_devices(model: nn.Module) -> set[torch.device]:
    """All devices on which a model runs."""
    return set(_devices(model))


def _devices(model: nn.Module) -> Iterator[torch.device]:
    for part in model.modules():
        hook: Any = getattr(part, "_hf_hook", None)
        device = next(
            (
                found
                for entry in getattr(hook, "hooks", (hook,))
                if (found := getattr(entry, "execution_device", None)) is not None
            ),
            None,
        )
        own = next(part.parameters(recurse=False), None)
        if device is not None:
            yield torch.device(device)
        elif own is not None:
            yield own.device
