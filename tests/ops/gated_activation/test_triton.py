import pytest
import torch

from c2r.ops.gated_activation import reference
from tests.ops.kernels import DEVICE, garbage_in_new_tensors, require_triton, seeded

require_triton()
from c2r.ops.gated_activation import triton  # noqa: E402


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize(("num_rows", "width"), [(5, 7), (1, 1), (0, 4), (3, 1030)])
def test_results_and_gradients_are_those_of_the_reference(num_rows, width, dtype, tolerance):
    rows = 3 * torch.randn(num_rows, 2 * width, generator=seeded(0), dtype=torch.float64)
    slope = torch.randn(num_rows, width, generator=seeded(1)).to(DEVICE, dtype)
    found = []
    for activate in (triton.silu_gated, reference.silu_gated):
        leaf = rows.to(DEVICE, dtype).requires_grad_()
        with garbage_in_new_tensors():
            result = activate(leaf)
            result.backward(slope)
        found.append((result.detach(), leaf.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_gradients_by_finite_differences():
    rows = torch.randn(2, 6, dtype=torch.float64, generator=seeded(0)).to(DEVICE).requires_grad_()
    assert torch.autograd.gradcheck(triton.silu_gated, rows)
