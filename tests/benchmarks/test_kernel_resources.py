"""Every kernel compiles to machine code of a GPU, though there is none here."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from c2r.ops.backend import OPS_WITH_KERNELS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton", reason="triton is not installed")
    if platform.machine() != "x86_64":
        pytest.skip("triton's assembler is tried on x86_64 only")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        BENCHMARKS / "kernel_resources.py",
        "--models",
        "Qwen3-30B",
        "one of each",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["kernels"]


def test_every_operation_has_kernels(kernels):
    assert {name.partition(".")[0] for name in kernels} == set(OPS_WITH_KERNELS)


def test_nothing_is_spilled(kernels):
    for name, models in kernels.items():
        for usage in models["Qwen3-30B"]:
            assert usage["registers"] > 0 and usage["spilled"] == 0, name


def test_sums_round_to_nearest_and_need_no_atomics(kernels):
    for name in ("sum_copies._sum", "sum_copies._sum_backward"):
        assert any(usage["rounds_to_bfloat16"] for usage in kernels[name]["Qwen3-30B"])
    for name, models in kernels.items():
        assert not any(usage["has_float_atomics"] for usage in models["Qwen3-30B"]), name
