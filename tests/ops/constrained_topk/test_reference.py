import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import c2r
from c2r.errors import PlanError
from c2r.ops.constrained_topk import allowed_experts, choose_constrained, route_constrained

PARTNERS = [[2, 3, 1], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def choose_by_loop(scores, partners, k, top_t):
    """The rule of the paper, token by token."""
    rows = []
    for row in scores.reshape(-1, scores.shape[-1]).tolist():
        top1 = max(range(len(row)), key=lambda expert: row[expert])
        candidates = sorted(partners[top1][:top_t], key=lambda expert: -row[expert])
        rows.append([top1, *candidates[: k - 1]])
    return torch.tensor(rows).view(*scores.shape[:-1], k)


def test_by_hand():
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    ids, values = c2r.constrained_topk(scores, PARTNERS, k=2, top_t=2)
    assert ids.tolist() == [[0, 2], [3, 1]]
    assert torch.equal(values, scores.gather(-1, ids))


def test_top_t_one_takes_the_first_partner_whatever_its_score():
    scores = torch.tensor([0.4, 0.3, 0.0, 0.1])
    assert c2r.constrained_topk(scores, PARTNERS, k=2, top_t=1)[0].tolist() == [0, 2]


def random_partners(num_experts, seed):
    rng = np.random.default_rng(seed)
    return [
        rng.permutation([j for j in range(num_experts) if j != i]).tolist()
        for i in range(num_experts)
    ]


@settings(max_examples=60)
@given(
    num_experts=st.integers(2, 12),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    shape=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_a_loop(num_experts, data, dtype, shape, seed):
    k = data.draw(st.integers(1, num_experts))
    top_t = data.draw(st.integers(max(k - 1, 0), num_experts - 1))
    torch.manual_seed(seed)
    # Distinct values, exact in bfloat16: where scores tie the rule does not say which is chosen.
    scores = torch.stack(
        [torch.randperm(num_experts) for _ in range(int(np.prod(shape)))] or [torch.empty(0)]
    )
    scores = scores.reshape(*shape, num_experts).to(dtype) - 3
    partners = random_partners(num_experts, seed)
    ids, values = c2r.constrained_topk(scores, partners, k=k, top_t=top_t)
    assert torch.equal(ids, choose_by_loop(scores, partners, k, top_t))
    assert values.dtype == dtype and torch.equal(values, scores.gather(-1, ids))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_all_partners_is_plain_top_k(k):
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    ids, values = c2r.constrained_topk(scores, random_partners(8, 1), k=k, top_t=7)
    plain = scores.topk(k)
    assert torch.equal(ids, plain.indices) and torch.equal(values, plain.values)


def test_gradient_reaches_the_chosen_scores_only():
    scores = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    partners = random_partners(6, 2)
    assert torch.autograd.gradcheck(
        lambda s: c2r.constrained_topk(s, partners, k=3, top_t=3)[1], scores
    )
    ids, values = c2r.constrained_topk(scores, partners, k=3, top_t=3)
    values.sum().backward()
    assert torch.equal(scores.grad, torch.zeros_like(scores).scatter(-1, ids, 1))


def test_scores_of_minus_infinity_do_not_loosen_the_list():
    scores = torch.tensor([1.0, 0.5, -torch.inf, -torch.inf])
    assert c2r.constrained_topk(scores, PARTNERS, k=3, top_t=2)[0].tolist()[0] == 0
    assert set(c2r.constrained_topk(scores, PARTNERS, k=3, top_t=2)[0].tolist()) == {0, 2, 3}


def test_a_group_limit_wins_over_the_list():
    allowed = allowed_experts(PARTNERS, 2)  # beside 0: 2 and 3
    scores = torch.tensor([0.4, 0.1, 0.3, 0.2])
    blocked = torch.tensor([False, False, True, False])
    assert choose_constrained(scores, allowed, 2, blocked).tolist() == [0, 3]
    assert choose_constrained(scores, allowed, 3, blocked).tolist() == [0, 3, 1]
    nothing = torch.zeros(4, dtype=torch.bool)
    for k in (1, 2, 3):
        assert torch.equal(
            choose_constrained(scores, allowed, k, nothing), choose_constrained(scores, allowed, k)
        )


@pytest.mark.parametrize(
    ("k", "top_t", "partners", "message"),
    [
        (3, 1, PARTNERS, r"T = 1 .* 4 experts with k = 3; choose T from 2 to 3"),
        (2, 4, PARTNERS, r"T = 4 .*choose T from 1 to 3"),
        (5, 3, PARTNERS, r"k = 5 .* only 4"),
        (2, 2, PARTNERS[:3], r"\[3, 3\] do not fit 4 experts and T = 2"),
        (2, 3, [row[:2] for row in PARTNERS], r"\[4, 2\] do not fit"),
    ],
)
def test_lists_that_do_not_fit_are_refused(k, top_t, partners, message):
    with pytest.raises(PlanError, match=message):
        c2r.constrained_topk(torch.zeros(4), partners, k=k, top_t=top_t)


def test_ties_keep_the_top_1_first():
    for values in itertools.product([0.0, 1.0], repeat=4):
        scores = torch.tensor(values)
        for k in (1, 2, 3):
            ids = c2r.constrained_topk(scores, PARTNERS, k=k, top_t=2)[0]
            assert ids[0] == scores.argmax() and len(set(ids.tolist())) == k


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalized", [False, True])
def test_routers_weigh_the_constrained_choice(score_function, normalized):
    logits = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    allowed = allowed_experts(random_partners(6, 3), 3)
    ids, weights = route_constrained(logits, allowed, 3, score_function, normalized)
    assert torch.equal(ids, choose_constrained(logits, allowed, 3))
    scores = logits.softmax(-1) if score_function == "softmax" else 1 / (1 + (-logits).exp())
    expected = scores.gather(-1, ids)
    if normalized:
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, expected)
    assert torch.autograd.gradcheck(
        lambda x: route_constrained(x, allowed, 3, score_function, normalized)[1],
        logits.requires_grad_(),
    )
