import pytest
import torch

from c2r.ops.coactivation import reference
from tests.ops.kernels import DEVICE, garbage_in_new_tensors, require_triton, seeded

require_triton()
from c2r.ops.coactivation import triton  # noqa: E402


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "k"),
    [(5, 4, 2), (0, 3, 2), (1, 1, 1), (130, 9, 9), (300, 64, 8), (3, 512, 16)],
)
@pytest.mark.parametrize("is_partial", [False, True])
def test_counts_are_those_of_the_reference(num_tokens, num_experts, k, is_partial):
    ids = torch.rand(num_tokens, num_experts, generator=seeded(0)).argsort(-1)[:, :k].to(DEVICE)
    kept = torch.rand(num_tokens, k, generator=seeded(1)).to(DEVICE) < 0.7 if is_partial else None
    with garbage_in_new_tensors():
        counts = triton.count_pairs(ids, num_experts, kept)
    assert torch.equal(counts, reference.count_pairs(ids, num_experts, kept))
