import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.ops.copy_rows import RowCopies, copies_of
from c2r.ops.sum_copies import reference
from tests.ops.kernels import DEVICE, garbage_in_new_tensors, require_triton, seeded

require_triton()
from c2r.ops.sum_copies import triton  # noqa: E402

# The interpreter rounds to bfloat16 towards zero; that kernels round to nearest is seen in their
# machine code (tests/benchmarks/test_kernel_resources.py).
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}


def some_rows(num_copies, num_sources, width, dtype, seed=0):
    source = torch.randint(0, max(num_sources, 1), (num_copies,), generator=seeded(seed))
    rows = torch.randn(num_copies, width, generator=seeded(seed + 1), dtype=torch.float64)
    weights = torch.rand(num_copies, generator=seeded(seed + 2), dtype=torch.float64)
    copies = copies_of(source.to(DEVICE), num_sources)
    return rows.to(DEVICE, dtype), copies, weights.to(DEVICE, dtype)


def by_definition(rows, copies, weights):
    """Product by product, in the order of the members; rounded once."""
    precise = torch.promote_types(rows.dtype, torch.float32)
    sums = torch.zeros(len(copies.starts), rows.shape[1], dtype=precise, device=rows.device)
    for member, weight in zip(copies.members.tolist(), weights, strict=True):
        sums[copies.source[member]] += weight.to(precise) * rows[member].to(precise)
    return sums.to(rows.dtype)


SIZES = [(7, 3, 5), (1, 1, 1), (0, 4, 8), (9, 20, 33), (6, 2, 2049), (0, 0, 3), (4, 2, 0)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
def test_sums_are_bitwise_those_of_the_definition(sizes, dtype):
    rows, copies, weights = some_rows(*sizes, dtype)
    with garbage_in_new_tensors():
        found, plain = triton.sum_copies(rows, copies, weights), triton.sum_copies(rows, copies)
    assert torch.equal(found, by_definition(rows, copies, weights))
    assert torch.equal(plain, by_definition(rows, copies, torch.ones_like(weights)))


@settings(max_examples=15)
@given(
    num_copies=st.integers(0, 20),
    num_sources=st.integers(1, 12),
    width=st.integers(1, 40),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 99),
)
def test_sums_and_gradients_agree_with_the_reference(num_copies, num_sources, width, dtype, seed):
    rows, copies, weights = some_rows(num_copies, num_sources, width, dtype, seed)
    grad = torch.randn(num_sources, width, generator=seeded(seed + 3)).to(DEVICE, dtype)
    close = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    with garbage_in_new_tensors():
        sums = triton.sum_copies(rows, copies, weights)
        gradients = triton.sum_copies_backward(grad, rows, copies, weights)
    torch.testing.assert_close(sums, reference.sum_copies(rows, copies, weights), **close)
    expected = reference.sum_copies_backward(grad, rows, copies, weights)
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other, **close)


def test_weights_may_be_wider_than_rows():
    rows, copies, weights = some_rows(11, 4, 6, torch.float16)
    grad = torch.ones(4, 6, dtype=torch.float16, device=DEVICE)
    found = triton.sum_copies_backward(grad, rows, copies, weights.float())
    expected = reference.sum_copies_backward(grad, rows, copies, weights.float())
    assert [tensor.dtype for tensor in found] == [torch.float16, torch.float32]
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_more_elements_than_an_int32_counts():
    width, num_copies = 2**21, 2**10 + 1  # 4 GiB that are never touched but for the last row
    rows = torch.empty(num_copies, width, dtype=torch.float16, device=DEVICE)
    rows[-1] = torch.randn(width, generator=seeded(0)).half()
    last = RowCopies(
        source=torch.empty(num_copies, dtype=torch.int64, device=DEVICE),
        members=torch.arange(num_copies, device=DEVICE),
        starts=torch.tensor([num_copies - 1], device=DEVICE),
    )
    assert torch.equal(triton.sum_copies(rows, last), rows[-1:])
