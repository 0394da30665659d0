import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.ops.rank_choice import Criterion, RankRule, RankTables, members_of, reference
from tests.ops.kernels import DEVICE, garbage_in_new_tensors, require_triton, seeded

require_triton()
from c2r.ops.rank_choice import triton  # noqa: E402


def some_layer(num_experts, num_ranks, criterion, strength, is_logits, seed=0):
    """A rule, and the tables of an even random placement."""
    placement = torch.arange(num_experts) % num_ranks
    placement = placement[torch.randperm(num_experts, generator=seeded(seed))]
    rule = RankRule(
        criterion=Criterion(criterion),
        strength=strength,
        num_ranks=num_ranks,
        smallest_rank=int(placement.bincount().min()),
        is_logits=is_logits,
    )
    return rule, RankTables.of(placement.to(DEVICE))


def some_scores(num_tokens, num_experts, is_logits, dtype=torch.float32, seed=0):
    logits = 2 * torch.randn(num_tokens, num_experts, generator=seeded(seed + 1))
    return (logits if is_logits else logits.softmax(-1)).to(DEVICE, dtype)


def chosen(layer, scores, k):
    rule, tables = layer
    with garbage_in_new_tensors():
        return triton.choose_on_ranks(scores, tables, k, rule)


def expected(layer, scores, k):
    rule, tables = layer
    return reference.choose_on_ranks(scores, tables, k, rule)


STRENGTHS = {"budgeted": (0.05, 0.4), "pruned": (0.1, 0.4), "priced": (0.02, 0.2)}


@settings(max_examples=30)
@given(
    num_ranks=st.integers(1, 10),
    per_rank=st.integers(2, 5),
    k=st.integers(1, 6),
    criterion=st.sampled_from(list(Criterion)),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_choices_are_those_of_the_reference(num_ranks, per_rank, k, criterion, data, seed):
    is_logits = data.draw(st.booleans())
    num_experts = num_ranks * per_rank + data.draw(st.integers(0, num_ranks - 1))
    k = min(k, num_experts)
    if num_ranks > 4:  # ranks that hold none of the best have no order of their own
        k = min(k, per_rank)
    if criterion is Criterion.GROUP_LIMITED:
        strength = float(data.draw(st.integers(min(-(-k // per_rank), num_ranks), num_ranks)))
    else:
        strength = data.draw(st.sampled_from(STRENGTHS[criterion]))
    layer = some_layer(num_experts, num_ranks, criterion, strength, is_logits, seed)
    scores = some_scores(5, num_experts, is_logits, seed=seed)
    assert torch.equal(chosen(layer, scores, k), expected(layer, scores, k))


@pytest.mark.parametrize("criterion", Criterion)
def test_as_large_as_models_become(criterion):
    strength = 8.0 if criterion is Criterion.GROUP_LIMITED else 0.1
    layer = some_layer(512, 64, criterion, strength, is_logits=True)
    scores = some_scores(2, 512, is_logits=True)
    assert torch.equal(chosen(layer, scores, 8), expected(layer, scores, 8))


@pytest.mark.parametrize("criterion", ["budgeted", "priced"])
@pytest.mark.parametrize("num_experts", [60, 64])
@pytest.mark.parametrize("num_ranks", [4, 8])
def test_all_experts_are_candidates(criterion, num_experts, num_ranks):
    """As many as are ever looked at, and a number that has to be padded."""
    layer = some_layer(num_experts, num_ranks, criterion, STRENGTHS[criterion][1], is_logits=False)
    scores = some_scores(50, num_experts, is_logits=False)
    assert torch.equal(chosen(layer, scores, 7), expected(layer, scores, 7))


@pytest.mark.parametrize("criterion", ["budgeted", "priced"])
@pytest.mark.parametrize("num_ranks", [3, 12])
def test_ranks_are_granted_until_they_hold_k_experts(criterion, num_ranks):
    """Two experts a rank, six per token: what is cheapest to visit could not fill the places."""
    layer = some_layer(2 * num_ranks, num_ranks, criterion, 0.7, is_logits=False)
    scores = some_scores(9, 2 * num_ranks, is_logits=False)
    ids = chosen(layer, scores, 6)
    assert all(len(set(row)) == 6 for row in ids.tolist())
    ranks = [len(set(row)) for row in layer[1].placement[ids].tolist()]
    assert ranks == [
        len(set(row)) for row in layer[1].placement[expected(layer, scores, 6)].tolist()
    ]


@pytest.mark.parametrize("criterion", ["budgeted", "priced", "pruned"])
@pytest.mark.parametrize("num_ranks", [4, 8])
def test_an_expert_on_every_rank_is_never_given_up(criterion, num_ranks):
    rule, tables = some_layer(16, num_ranks, criterion, 0.3, is_logits=False)
    tables.placement[-2:] = num_ranks
    layer = rule, tables._replace(members=members_of(tables.placement, num_ranks))
    scores = some_scores(20, 16, is_logits=False)
    assert torch.equal(chosen(layer, scores, 4), expected(layer, scores, 4))


@pytest.mark.parametrize("criterion", Criterion)
def test_no_tokens_equal_scores_and_narrow_types(criterion):
    layer = some_layer(16, 4, criterion, 2.0 if criterion == "group_limited" else 0.2, False)
    assert chosen(layer, some_scores(0, 16, False), 4).shape == (0, 4)
    ids = chosen(layer, torch.zeros(3, 16, device=DEVICE), 4)
    if criterion != "pruned":
        assert all(len(set(row)) == 4 for row in ids.tolist())
    wide = some_scores(20, 16, False)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        narrow = wide.to(dtype)
        masses = [
            narrow.gather(-1, choose(layer, narrow, 4)).double() for choose in (chosen, expected)
        ]
        torch.testing.assert_close(*masses)


@pytest.mark.parametrize("criterion", ["budgeted", "pruned", "priced"])
def test_many_tokens_on_many_ranks(criterion):
    """Where experts just beyond the best decide which rank comes first, too."""
    layer = some_layer(40, 8, criterion, STRENGTHS[criterion][0], is_logits=False)
    scores = some_scores(400, 40, is_logits=False)
    assert torch.equal(chosen(layer, scores, 5), expected(layer, scores, 5))


@pytest.mark.parametrize("criterion", Criterion)
def test_gates_that_a_bias_made_negative_weigh_nothing(criterion):
    layer = some_layer(24, 6, criterion, 3.0 if criterion == "group_limited" else 0.1, False)
    scores = torch.randn(100, 24, generator=seeded(5)).to(DEVICE) - 1.5
    found, reached = chosen(layer, scores, 4), expected(layer, scores, 4)
    has_mass = (scores > 0).sum(-1) >= 4  # else sets of ranks tie at the mass that there is
    assert torch.equal(found[has_mass], reached[has_mass])
    assert has_mass.any() and not has_mass.all()
