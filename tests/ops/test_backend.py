from pathlib import Path

import pytest
import torch

import c2r.ops
from c2r.errors import InputError
from c2r.ops import backend
from c2r.ops.backend import OPS_WITH_KERNELS, VARIABLE, Backend, choose_backend
from c2r.ops.coactivation import count_pairs, reference
from tests.ops.kernels import require_interpreter, require_triton

CPU = torch.device("cpu")


def test_every_kernel_stands_beside_its_reference():
    ops = Path(c2r.ops.__file__).parent
    assert tuple(sorted(p.parent.name for p in ops.glob("*/triton.py"))) == OPS_WITH_KERNELS
    assert all((ops / name / "reference.py").exists() for name in OPS_WITH_KERNELS)


def test_tensors_on_the_cpu_go_to_the_reference(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    choice = choose_backend(CPU)
    assert choice.backend is Backend.REFERENCE and choice.reason == "tensors are on cpu"


def test_a_named_backend_is_used(monkeypatch):
    require_interpreter()
    called = []
    kernel = backend._kernel("c2r.ops.coactivation.reference", "count_pairs")
    monkeypatch.setattr(
        backend, "_kernel", lambda *_: lambda *args: called.append(1) or kernel(*args)
    )
    ids = torch.tensor([[0, 1]])
    for name, times in (("reference", 0), ("triton", 1)):
        monkeypatch.setenv(VARIABLE, name)
        assert choose_backend(CPU).backend == name
        assert count_pairs(ids, 2).tolist() == [[0, 1], [1, 0]]
        assert len(called) == times


def test_a_backend_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cutlass")
    with pytest.raises(InputError, match="C2R_BACKEND=cutlass is no backend; choose reference or"):
        choose_backend(CPU)


@pytest.fixture
def fresh():
    backend._choose.cache_clear()
    yield
    backend._choose.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_named_backend_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match=r"on cpu tensors: .*; unset it"):
        choose_backend(CPU)
    with pytest.raises(InputError, match="on meta tensors: kernels run on GPUs"):
        choose_backend(torch.device("meta"))


@pytest.mark.usefixtures("fresh")
def test_without_triton_the_reference_runs_and_says_why(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    choice = choose_backend(torch.device("cuda", 0))
    assert choice.backend is Backend.REFERENCE and "pip install triton" in choice.reason


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "reference"), ((9, 0), "triton")])
def test_kernels_are_the_default_on_gpus_that_can_run_them(monkeypatch, capability, chosen):
    require_triton()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    choice = choose_backend(torch.device("cuda", 0))
    assert choice.backend == chosen
    assert choice.reason == (
        "tensors are on a GPU"
        if chosen == "triton"
        else "the GPU has compute capability 7.5, kernels need 8.0"
    )


def test_compiled_graphs_hold_the_reference(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    ids = torch.tensor([[0, 1], [2, 1]])
    torch._dynamo.reset()
    compiled = torch.compile(count_pairs, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids, 3), reference.count_pairs(ids, 3))
