"""Gradients of weighted sums, against plain autograd, beyond one block of rows."""

import pytest
import torch

from c2r.ops import autograd
from c2r.ops.copy_rows import copies_of


@pytest.mark.parametrize("num_rows", [0, 1, 127, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_of_weighted_sums(num_rows, dtype):
    drawn = torch.Generator().manual_seed(num_rows)
    source = torch.randint(0, 50, (num_rows,), generator=drawn)
    copies = copies_of(source, 50)
    rows = torch.randn(num_rows, 8, generator=drawn).to(dtype).requires_grad_()
    weights = torch.rand(num_rows, generator=drawn, dtype=torch.float64)
    weights = weights.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    grad = torch.randn(50, 8, generator=drawn).to(dtype)
    autograd.sum_copies(rows, copies, weights).backward(grad)
    in_row_order = torch.zeros(num_rows, dtype=weights.dtype)
    in_row_order[copies.members] = weights.detach()
    expected_rows = grad[source].to(weights.dtype) * in_row_order[:, None]
    expected_weights = (grad[source].to(weights.dtype) * rows.detach()).sum(1)[copies.members]
    tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert torch.allclose(rows.grad.to(weights.dtype), expected_rows, atol=tolerance)
    assert torch.allclose(weights.grad, expected_weights, atol=1e-5, rtol=1e-5)
