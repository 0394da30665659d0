import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.ops.coactivation import count_pairs


def test_by_hand():
    ids = torch.tensor([[0, 2], [2, 1]])
    assert count_pairs(ids, 3).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


@settings(max_examples=40)
@given(num_experts=st.integers(1, 9), data=st.data(), seed=st.integers(0, 999))
def test_agrees_with_a_loop(num_experts, data, seed):
    k = data.draw(st.integers(1, num_experts))
    tokens = data.draw(st.integers(0, 20))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, num_experts, generator=generator).argsort(-1)[:, :k]
    expected = torch.zeros(num_experts, num_experts, dtype=torch.int64)
    for row in ids.tolist():
        for i in row:
            for j in row:
                expected[i, j] += i != j
    counts = count_pairs(ids, num_experts)
    assert torch.equal(counts, expected)
    assert counts.sum() == tokens * k * (k - 1)
