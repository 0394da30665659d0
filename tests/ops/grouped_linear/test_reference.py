import pytest
import torch

from c2r.ops.grouped_linear import grouped_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [16, 6])
def test_agrees_with_a_product_per_expert(dtype, width):
    torch.manual_seed(0)
    counts = torch.tensor([3, 0, 4])
    rows = torch.randn(7, width).to(dtype).requires_grad_()
    weight = torch.randn(3, width, 8).to(dtype).requires_grad_()
    result = grouped_linear(rows, weight, counts)
    expected = torch.cat([rows[:3] @ weight[0], rows[3:] @ weight[2]])
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    ours = torch.autograd.grad(result.sum(), [rows, weight])  # an expanded gradient
    theirs = torch.autograd.grad(expected.sum(), [rows, weight])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_no_rows():
    weight = torch.randn(2, 8, 8, requires_grad=True)
    result = grouped_linear(torch.empty(0, 8), weight, torch.zeros(2, dtype=torch.int64))
    assert result.shape == (0, 8)
    result.sum().backward()
    assert weight.grad.abs().max() == 0
