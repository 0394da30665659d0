import pytest
import torch

from c2r.ops.copy_rows import RowCopies, copies_of, reference
from tests.ops.kernels import DEVICE, garbage_in_new_tensors, require_triton, seeded

require_triton()
from c2r.ops.copy_rows import triton  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    ("num_copies", "num_sources", "width"),
    [(7, 3, 5), (1, 1, 1), (0, 4, 8), (5, 9, 2049), (6, 2, 0), (0, 0, 3)],
)
def test_every_copy_is_its_source(num_copies, num_sources, width, dtype):
    source = torch.randint(0, max(num_sources, 1), (num_copies,), generator=seeded(0))
    copies = copies_of(source.to(DEVICE), num_sources)
    rows = (100 * torch.rand(num_sources, width, generator=seeded(1))).to(DEVICE, dtype)
    with garbage_in_new_tensors():
        found = triton.copy_rows(rows, copies)
    assert torch.equal(found, reference.copy_rows(rows, copies))


def test_rows_need_not_be_contiguous():
    copies = copies_of(torch.tensor([1, 0, 1], device=DEVICE), 2)
    rows = torch.arange(12.0, device=DEVICE).view(6, 2).T
    assert torch.equal(triton.copy_rows(rows, copies), rows[[1, 0, 1]])


def test_more_elements_than_an_int32_counts():
    width, num_copies = 2**21, 2**10 + 1  # 2 GiB that are never touched but for the last row
    last = RowCopies(
        source=torch.empty(num_copies, dtype=torch.int64, device=DEVICE),
        members=torch.arange(num_copies, device=DEVICE),
        starts=torch.tensor([num_copies - 1], device=DEVICE),
    )
    row = torch.randint(0, 256, (1, width), dtype=torch.uint8, generator=seeded(0)).to(DEVICE)
    assert torch.equal(triton.copy_rows(row, last)[-1:], row)
