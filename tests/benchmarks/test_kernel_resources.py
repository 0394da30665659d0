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
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    return [row for row in rows if row["shapes"] == "Qwen3-30B"]


def test_every_operation_has_kernels(kernels):
    assert {row["kernel"].partition(".")[0] for row in kernels} == set(OPS_WITH_KERNELS)


def test_nothing_is_spilled(kernels):
    for row in kernels:
        assert row["registers"] > 0 and row["spilled"] == 0, row


def test_sums_round_to_nearest_and_need_no_atomics(kernels):
    for name in ("sum_copies._sum", "sum_copies._sum_backward"):
        assert any(row["rounds_to_bfloat16"] for row in kernels if row["kernel"] == name)
    assert not any(row["has_float_atomics"] for row in kernels)
