"""What is asked of any model, whatever its layers: its family, its modes, the model compiled."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def model_type(model: nn.Module) -> str:
    """The family of a model: its config's `model_type`, else its class name."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that `torch.compile` was given, where `model` is what it returned; else `model`.

    The two share modules, but paths in the compiled one begin with `_orig_mod`, and attributes
    that are set on it land on the other.
    """
    # As a child, not as an attribute: what PEFT wraps around a compiled model hands those through.
    return model._modules.get("_orig_mod") or model


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
