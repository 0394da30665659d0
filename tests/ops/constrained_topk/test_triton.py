import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.ops.constrained_topk import allowed_experts, reference
from tests.ops.kernels import DEVICE, garbage_in_new_tensors, require_triton, seeded

require_triton()
from c2r.ops.constrained_topk import triton  # noqa: E402


def some_scores(num_tokens, num_experts, dtype=torch.float32, seed=0):
    """Distinct within a token, exact in every type."""
    order = torch.rand(num_tokens, num_experts, generator=seeded(seed)).argsort(-1)
    return (order - num_experts // 2).to(DEVICE, dtype)


def some_lists(num_experts, top_t, seed=1):
    drawn = torch.rand(num_experts, num_experts, generator=seeded(seed)).fill_diagonal_(2)
    return allowed_experts(drawn.argsort(-1)[:, : num_experts - 1], top_t).to(DEVICE)


@settings(max_examples=20)
@given(
    num_tokens=st.integers(0, 9),
    num_experts=st.integers(1, 70),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 99),
)
def test_choices_are_those_of_the_reference(num_tokens, num_experts, data, dtype, seed):
    k = data.draw(st.integers(1, min(num_experts, 16)))
    allowed = some_lists(num_experts, data.draw(st.integers(k - 1, num_experts - 1)), seed)
    scores = some_scores(num_tokens, num_experts, dtype, seed)
    blocked = torch.rand(scores.shape, generator=seeded(seed)).to(DEVICE) < 0.4
    with garbage_in_new_tensors():
        found = triton.choose_constrained(scores, allowed, k)
        left = triton.choose_constrained(scores, allowed, k, blocked)
    assert torch.equal(found, reference.choose_constrained(scores, allowed, k))
    assert torch.equal(left, reference.choose_constrained(scores, allowed, k, blocked))


@pytest.mark.parametrize(("num_experts", "k"), [(512, 16), (60, 4), (3, 3), (1, 1)])
def test_choices_among_what_each_token_is_allowed(num_experts, k):
    scores = some_scores(5, num_experts)
    allowed = torch.rand(scores.shape, generator=seeded(2)).to(DEVICE) < 0.5
    allowed[:, :k] = True
    first = scores.argmin(-1, keepdim=True)
    for blocked in (None, ~allowed.roll(1, 0)):
        expected = reference.choose_among(scores, allowed, k, blocked)
        assert torch.equal(triton.choose_among(scores, allowed, k, blocked), expected)
        expected = reference.choose_among(scores, allowed, k, blocked, first)
        assert torch.equal(triton.choose_among(scores, allowed, k, blocked, first), expected)


def test_any_leading_shape():
    scores, allowed = some_scores(12, 8), some_lists(8, 4)
    expected = triton.choose_constrained(scores, allowed, 3)
    assert torch.equal(
        triton.choose_constrained(scores.view(3, 4, 8), allowed, 3), expected.view(3, 4, 3)
    )
    assert torch.equal(triton.choose_constrained(scores[5], allowed, 3), expected[5])


def test_lower_ids_are_chosen_among_equal_scores():
    allowed = some_lists(4, 2)
    scores = torch.tensor(list(itertools.product([-0.0, 0.0, 1.0], repeat=4)), device=DEVICE)
    found = triton.choose_constrained(scores, allowed, 3)
    expected = reference.choose_constrained(scores, allowed, 3)
    assert torch.equal(scores.gather(-1, found), scores.gather(-1, expected))
    for row, ids in zip(scores.tolist(), found.tolist(), strict=True):
        assert ids[0] == row.index(max(row))
        others = [e for e in range(4) if allowed[ids[0], e] and e != ids[0]]
        assert ids[1:] == sorted(others, key=lambda e: (-row[e], e))[:2]


def test_infinite_and_undefined_scores_still_give_k_allowed_experts():
    allowed = some_lists(6, 3)
    scores = torch.full((3, 6), -torch.inf, device=DEVICE)
    scores[1] = torch.nan
    scores[2, 2:] = torch.tensor([torch.nan, torch.inf, 0.0, -torch.inf])
    ids = triton.choose_constrained(scores, allowed, 3)
    assert ids[2, 0] == 2, "NaN counts as highest, as in torch.topk"
    for row in ids.tolist():
        assert len(set(row)) == 3 and all(allowed[row[0], expert] for expert in row)


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("sizes", [(7, 12, 4), (3, 60, 8), (2, 5, 5), (0, 4, 2), (1, 1, 1)])
def test_routers_and_their_gradients(sizes, normalized, score_function):
    num_tokens, num_experts, k = sizes
    allowed = some_lists(num_experts, max(k - 1, num_experts // 2))
    logits = torch.randn(num_tokens, num_experts, generator=seeded(3)).to(DEVICE)
    grad = torch.randn(num_tokens, k, generator=seeded(4)).to(DEVICE)
    results = []
    for route in (triton.route_constrained, reference.route_constrained):
        leaf = logits.clone().requires_grad_()
        with garbage_in_new_tensors():
            ids, weights = route(leaf, allowed, k, score_function, normalized)
            weights.backward(grad)
        results.append((ids, weights.detach(), leaf.grad))
    (ids, weights, slope), (expected_ids, expected_weights, expected_slope) = results
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-4, atol=1e-6)
