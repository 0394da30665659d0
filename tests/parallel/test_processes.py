"""The dispatchers on four gloo processes."""

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from c2r.errors import CommunicationError
from c2r.parallel import DISPATCHERS, agree, fastest_chunks
from c2r.parallel.chunks import TRIED_CHUNKS
from tests.parallel.layers import make_layer
from tests.parallel.processes import run_checks
from tests.parallel.test_world import gather_and_add_up

PLACEMENT = [2, 0, 3, 1, 1, 0, 2, 3, 3, 0]
pytestmark = pytest.mark.distributed


def agrees_with_one_process(comm):
    for name in DISPATCHERS:
        for num_chunks in (1, 2, 3, 4, 5):
            layer = make_layer(PLACEMENT, [40, 30, 0, 20], sizes=(64, 32), dtype=torch.float32)
            output = layer.run(comm, name, num_chunks, num_nodes=2)
            alone = [layer.alone(rank) for rank in range(comm.size)]
            signs = [torch.ones_like(o).cumsum(0).cos() for o in alone]
            mine = alone[comm.rank]
            assert (output - mine).norm() <= 1e-5 * mine.norm(), name
            (output * signs[comm.rank]).sum().backward()
            exact = torch.autograd.grad(
                sum((o * sign).sum() for o, sign in zip(alone, signs, strict=True)), layer.leaves
            )
            check_gradients(comm, layer, exact)


def check_gradients(comm, layer, exact):
    own = torch.from_numpy(layer.placement == comm.rank)
    for leaf, grad in zip(layer.leaves, exact, strict=True):
        if leaf is layer.hidden[comm.rank] or leaf is layer.weights[comm.rank]:
            assert (leaf.grad - grad).norm() <= 1e-5 * grad.norm()
        if leaf is layer.first or leaf is layer.second:
            assert (leaf.grad[own] - grad[own]).norm() <= 1e-5 * grad[own].norm()


def gradients_by_finite_differences(comm):
    layer = make_layer([1, 0, 3, 2, 1], [2] * 4, sizes=(3, 2))
    own = (layer.hidden[comm.rank], layer.weights[comm.rank])
    for name in ("zero_redundancy", "k_fold"):
        assert torch.autograd.gradcheck(lambda *_, name=name: layer.run(comm, name, 2), own)


def half_precision_bitwise(comm):
    from tests.parallel.test_dispatchers import two_level

    layer = make_layer(PLACEMENT, [9, 5, 0, 7], top_k=4, sizes=(16, 8), dtype=torch.bfloat16)
    expected = two_level(layer, comm.rank)
    for num_chunks in (1, 2):
        assert torch.equal(layer.run(comm, "zero_redundancy", num_chunks), expected)


def twice_the_same_bitwise(comm):
    for name in DISPATCHERS:
        found = []
        for _ in range(2):
            layer = make_layer(PLACEMENT, [9, 5, 0, 7], top_k=4, dtype=torch.float32)
            output = layer.run(comm, name, num_chunks=4, num_nodes=2)
            own = (layer.hidden[comm.rank], layer.weights[comm.rank], layer.first, layer.second)
            found.append((output, *torch.autograd.grad(output.sum(), own)))
        assert all(torch.equal(*both) for both in zip(*found, strict=True)), name


def all_ranks_find_the_same_number_of_chunks(comm):
    layer = make_layer(PLACEMENT, [40, 30, 0, 20])
    number = fastest_chunks(*layer.given(comm, "zero_redundancy"))
    assert number in TRIED_CHUNKS
    found = torch.tensor(number)
    comm.all_reduce(found)
    assert found == comm.size * number


def recomputed_layers(comm):
    layer = make_layer(PLACEMENT, [9, 5, 3, 7])
    plain = layer.run(comm, "zero_redundancy", 3)
    (expected,) = torch.autograd.grad(plain.sum(), layer.hidden[comm.rank])
    again = checkpoint(lambda _: layer.run(comm, "zero_redundancy", 3), plain, use_reentrant=False)
    (grad,) = torch.autograd.grad(again.sum(), layer.hidden[comm.rank])
    assert torch.equal(grad, expected)


def compiled_around(comm):
    layer = make_layer(PLACEMENT, [9, 5, 3, 7])
    hidden = layer.hidden[comm.rank]

    def block(x):
        return (x * 2).sin() + layer.run(comm, "zero_redundancy")

    compiled = torch.compile(block, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), block(hidden))


def narrow_types(comm):
    for dtype, tolerance in ((torch.bfloat16, 0.02), (torch.float8_e4m3fn, 0.1)):
        layer = make_layer(PLACEMENT, [9, 5, 3, 7], sizes=(160, 6), dtype=torch.float32)
        output = layer.run(comm, "zero_redundancy", dispatch_dtype=dtype)
        alone = layer.alone(comm.rank)
        assert 0 < (output - alone).norm() <= tolerance * alone.norm()
        (grad,) = torch.autograd.grad(output.sum(), layer.hidden[comm.rank])
        (exact,) = torch.autograd.grad(alone.sum(), layer.hidden[comm.rank])
        assert (grad - exact).norm() <= 0.1 * exact.norm()


def disagreement(comm):
    agree({"the plan": "a", "k": 4}, comm)
    with pytest.raises(CommunicationError, match="k of rank 2 differs: 8 there, 4 on the others"):
        agree({"the plan": "a", "k": 8 if comm.rank == 2 else 4}, comm)


def part_of_the_ranks(comm):
    dist.barrier()
    pair = comm.subset([0, 2] if comm.rank % 2 == 0 else [1, 3])
    assert pair.size == 2
    assert pair.rank == comm.rank // 2
    layer = make_layer([1, 0, 0], [4, 3])
    torch.testing.assert_close(layer.run(pair, "zero_redundancy"), layer.alone(pair.rank))


CHECKS = {
    check.__name__: check
    for check in (
        agrees_with_one_process,
        gradients_by_finite_differences,
        half_precision_bitwise,
        twice_the_same_bitwise,
        all_ranks_find_the_same_number_of_chunks,
        recomputed_layers,
        compiled_around,
        narrow_types,
        disagreement,
        part_of_the_ranks,
        gather_and_add_up,
    )
}


def test_on_four_processes():
    assert run_checks(CHECKS) == {}
