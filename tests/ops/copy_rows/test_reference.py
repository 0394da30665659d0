import pytest
import torch

from c2r.ops.copy_rows import copies_of, copy_rows
from c2r.ops.sum_copies import sum_copies


def test_copies_seen_from_both_sides():
    copies = copies_of(torch.tensor([2, 0, 0]), 3)
    assert copies.members.tolist() == [1, 2, 0]
    assert copies.starts.tolist() == [0, 2, 2]
    rows = torch.tensor([[1.0], [2.0], [4.0]])
    assert copy_rows(rows, copies).tolist() == [[4.0], [1.0], [1.0]]
    assert sum_copies(rows, copies).tolist() == [[6.0], [0.0], [1.0]]


def test_weights_are_in_the_order_of_members():
    copies = copies_of(torch.tensor([1, 0, 1]), 2)
    rows = torch.tensor([[1.0], [2.0], [4.0]])
    assert sum_copies(rows, copies, torch.tensor([1.0, 10.0, 100.0])).tolist() == [[2.0], [410.0]]


def test_no_rows_sum_to_zero():
    copies = copies_of(torch.empty(0, dtype=torch.int64), 2)
    assert sum_copies(torch.empty(0, 3), copies).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_is_summed_in_float32_and_rounded_once(weight_dtype):
    torch.manual_seed(0)
    source = torch.randint(0, 20, (70,))
    copies = copies_of(source, 20)
    rows = torch.randn(70, 24).bfloat16()
    weights = torch.rand(70).bfloat16().to(weight_dtype)
    expected = torch.zeros(20, 24)
    for weight, member in zip(weights, copies.members, strict=True):
        expected[source[member]] += weight.float() * rows[member].float()
    assert torch.equal(sum_copies(rows, copies, weights), expected.bfloat16())
