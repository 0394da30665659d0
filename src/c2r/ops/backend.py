"""Which implementation of an operation runs: Triton kernels on GPUs, plain torch elsewhere."""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ParamSpec, TypeVar

import torch

from c2r.errors import InputError

VARIABLE = "C2R_BACKEND"
"""The environment variable that names a backend."""

OPS_WITH_KERNELS = (
    "coactivation",
    "constrained_topk",
    "copy_rows",
    "dispatch_layout",
    "gated_activation",
    "rank_choice",
    "sum_copies",
)
_MIN_CAPABILITY = (8, 0)
"""Ampere: the first with bfloat16, and the oldest that kernels were compiled for."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Backend(StrEnum):
    """How an operation is computed."""

    REFERENCE = "reference"
    TRITON = "triton"


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendChoice:
    """A backend and why it was chosen."""

    backend: Backend
    reason: str


def by_device(reference: Callable[_P, _R]) -> Callable[_P, _R]:
    """The operation whose plain torch form is `reference`, computed where its first argument is.

    The kernel has the same name in the module `triton` beside the reference's. The choice is that
    of `choose_backend`; `torch.compile` always traces the reference, to fuse it itself.
    """

    @functools.wraps(reference)
    def operation(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():  # a kernel would be a wall to its fusion
            return reference(*args, **kwargs)
        first: Any = args[0]
        if choose_backend(first.device).backend is Backend.TRITON:
            kernel: Callable[_P, _R] = _kernel(reference.__module__, reference.__name__)
            return kernel(*args, **kwargs)
        return reference(*args, **kwargs)

    return operation


def choose_backend(device: torch.device) -> BackendChoice:
    """The backend of operations on tensors of `device`.

    Raises:
        InputError: `C2R_BACKEND` names one that does not exist or cannot run there.
    """
    return _choose(os.environ.get(VARIABLE), device)


@functools.cache
def _choose(named: str | None, device: torch.device) -> BackendChoice:
    if named is None:
        if device.type != "cuda":
            return BackendChoice(backend=Backend.REFERENCE, reason=f"tensors are on {device.type}")
        obstacle = _obstacle(device)
        if obstacle:
            return BackendChoice(backend=Backend.REFERENCE, reason=obstacle)
        return BackendChoice(backend=Backend.TRITON, reason="tensors are on a GPU")
    if named not in list(Backend):
        raise InputError(f"{VARIABLE}={named} is no backend; choose reference or triton, or unset")
    obstacle = _obstacle(device) if named == Backend.TRITON else None
    if obstacle:
        raise InputError(
            f"{VARIABLE}={named} cannot run on {device.type} tensors: {obstacle}; unset it"
        )
    return BackendChoice(backend=Backend(named), reason=f"{VARIABLE} names it")


def _obstacle(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on tensors of `device`; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (`pip install triton`)"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < _MIN_CAPABILITY:
            return f"the GPU has compute capability {major}.{minor}, kernels need 8.0"
        return None
    if device.type == "cpu" and importlib.import_module("triton").knobs.runtime.interpret:
        return None
    return "kernels run on GPUs, or interpreted where TRITON_INTERPRET=1 is set from the start"


@functools.cache
def _kernel(reference_module: str, name: str) -> Any:
    module = importlib.import_module(reference_module.removesuffix("reference") + "triton")
    return getattr(module, name)
