"""The dispatchers on kernels: two gloo processes, each with an interpreter of its own."""

import os

import pytest
import torch

from c2r.parallel import DISPATCHERS
from tests.ops.kernels import require_interpreter
from tests.parallel.layers import make_layer
from tests.parallel.processes import run_checks

pytestmark = pytest.mark.distributed


def agrees_with_one_process(comm):
    os.environ["C2R_BACKEND"] = "triton"
    for name in DISPATCHERS:
        layer = make_layer([1, 0, 0, 1, 1], [7, 5], sizes=(16, 8), dtype=torch.float32)
        output, alone = (
            layer.run(comm, name, num_chunks=2, num_nodes=2),
            layer.alone(comm.rank),
        )
        assert (output - alone).norm() <= 1e-5 * alone.norm(), name
        own = (layer.hidden[comm.rank], layer.weights[comm.rank])
        found = torch.autograd.grad(output.sum(), own)
        for mine, exact in zip(found, torch.autograd.grad(alone.sum(), own), strict=True):
            assert (mine - exact).norm() <= 1e-5 * exact.norm(), name


def test_processes():
    require_interpreter()
    assert not run_checks({"agrees": agrees_with_one_process}, num_ranks=2)
