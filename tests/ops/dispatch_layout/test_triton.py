import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.ops.dispatch_layout import reference
from tests.ops.kernels import DEVICE, garbage_in_new_tensors, require_triton, seeded

require_triton()
from c2r.ops.dispatch_layout import triton  # noqa: E402


def assert_all_equal(found, expected, *names):
    for name in names:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@settings(max_examples=20)
@given(
    num_rows=st.integers(0, 70),
    k=st.integers(1, 5),
    num_destinations=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_departures(num_rows, k, num_destinations, seed):
    rows = torch.arange(num_rows).repeat_interleave(k).to(DEVICE)
    drawn = torch.randint(0, num_destinations + 1, (num_rows * k,), generator=seeded(seed))
    drawn = drawn.to(DEVICE)
    with garbage_in_new_tensors():
        found = triton.one_row_per_destination(rows, drawn, num_destinations)
    expected = reference.one_row_per_destination(rows, drawn, num_destinations)
    assert_all_equal(found, expected, "order", "starts_row", "source", "num_rows", "num_pairs")


@pytest.mark.parametrize(
    ("num_pairs", "num_slots"), [(0, 3), (1, 1), (129, 7), (400, 512), (50, 1023), (50, 5000)]
)
def test_rows_by_slot(num_pairs, num_slots):
    slots = torch.randint(0, num_slots + 1, (num_pairs,), generator=seeded(0)).to(DEVICE)
    with garbage_in_new_tensors():
        found = triton.one_row_per_pair(slots, num_slots)
    for mine, other in zip(found, reference.one_row_per_pair(slots, num_slots), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("num_rows", "num_experts", "used"), [(40, 6, 2), (1, 1, 1), (0, 4, 1), (129, 60, 60)]
)
def test_copies_by_expert(num_rows, num_experts, used):
    """Rows without any expert, experts without any row, and a single expert are among these."""
    num_pairs = 2 * num_rows
    rows = torch.randint(0, max(num_rows, 1), (num_pairs,), generator=seeded(0)).sort().values
    ids = torch.randint(0, used, (num_pairs,), generator=seeded(1))
    rows, ids = rows.to(DEVICE), ids.to(DEVICE)
    with garbage_in_new_tensors():
        found, counts = triton.sort_by_expert(rows, ids, num_rows, num_experts)
    expected, expected_counts = reference.sort_by_expert(rows, ids, num_rows, num_experts)
    assert_all_equal(found, expected, "source", "members", "starts")
    assert torch.equal(counts, expected_counts)
