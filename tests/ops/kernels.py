"""Kernels are run by Triton's interpreter here; on a GPU by themselves, where there is one."""

from contextlib import contextmanager

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def require_triton():
    pytest.importorskip("triton", reason="triton is not installed")


def require_interpreter():
    """For kernels on CPU tensors."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are not interpreted: TRITON_INTERPRET=1 is not set")


@contextmanager
def garbage_in_new_tensors():
    """Whatever a kernel forgets to write is NaN or the largest integer."""
    was_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)


def seeded(seed):
    return torch.Generator().manual_seed(seed)
