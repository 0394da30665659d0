"""The arithmetic of routers, by hand and against those of transformers."""

from dataclasses import replace

import pytest
import torch

import c2r
from c2r.plans import LayerPlan
from c2r.routing import TopKPolicy, make_policy
from c2r.serving.scoring import Scoring
from tests.serving import families

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
SOFTMAX = Scoring(function="softmax", renormalize=False)


def test_weights_are_probabilities_over_all_experts():
    weights, ids = SOFTMAX.route(LOGITS, 2, TopKPolicy())
    assert ids.tolist() == [[0, 1]]
    torch.testing.assert_close(weights, LOGITS.softmax(-1)[:, :2])


def test_renormalized_weights_add_up_to_the_scaling_factor():
    scoring = replace(SOFTMAX, renormalize=True, scaling_factor=2.5)
    weights, _ = scoring.route(LOGITS, 2, TopKPolicy())
    torch.testing.assert_close(weights, 2.5 * torch.tensor([[2.0, 1.0]]).softmax(-1))


def test_a_bias_counts_for_the_choice_only():
    bias = torch.tensor([0.0, 0.0, 0.0, 5.0])
    scoring = Scoring(function="sigmoid", renormalize=False, bias=bias)
    weights, ids = scoring.route(LOGITS, 2, TopKPolicy())
    assert ids.tolist() == [[3, 0]]
    torch.testing.assert_close(weights, torch.tensor([[-1.0, 2.0]]).sigmoid())


@pytest.mark.parametrize(("bias", "chosen"), [(None, [4, 5]), (torch.zeros(6), [2, 3])])
def test_groups_count_by_their_best_expert_or_behind_a_bias_by_their_two_best(bias, chosen):
    logits = torch.tensor([[-3.0, -3.0, 2.0, 2.0, 3.0, -9.0]])
    scoring = Scoring(
        function="sigmoid", renormalize=False, bias=bias, num_groups=3, num_chosen_groups=1
    )
    _, ids = scoring.route(logits, 2, TopKPolicy())
    assert sorted(ids[0].tolist()) == chosen


def test_a_dropped_expert_weighs_nothing():
    layer = LayerPlan(
        name="",
        num_experts=4,
        top_k=2,
        policy="pruned",
        strength=0.5,
        partners=torch.empty(4, 0, dtype=torch.int64).numpy(),
        placement=torch.tensor([0, 1, 0, 1]).numpy(),
    )
    weights, ids = SOFTMAX.route(LOGITS, 2, make_policy(layer))
    assert ids.tolist() == [[0, 0]]
    torch.testing.assert_close(weights, torch.stack([LOGITS.softmax(-1)[:, 0], torch.zeros(1)], 1))


SCORINGS = {
    "mixtral": Scoring(function="softmax", renormalize=True),
    "qwen2_moe": Scoring(function="softmax", renormalize=False),
    "deepseek_v3": Scoring(
        function="sigmoid",
        renormalize=True,
        scaling_factor=2.5,
        bias=torch.empty(16),
        num_groups=4,
        num_chosen_groups=2,
    ),
}


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("policy", ["top_k", "priced", "c2r"])
def test_layers_route_as_in_transformers(name, policy):
    model, scoring = families.make(name), SCORINGS[name]
    ids = torch.randint(3, 256, (2, 64), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    strength = {"top_k": None, "priced": 0.2, "c2r": 4}[policy]
    plan = c2r.make_plan(c2r.profile(model, [batch]), 4, policy=policy, strength=strength)
    c2r.apply(model, plan)
    gate = model.model.layers[1].mlp.gate
    seen = []
    gate.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    with torch.no_grad(), c2r.capture(model) as recorder:
        model(**batch)
        trace = recorder.take().layers[1]
    logits = seen[0].flatten(0, -2) @ gate.weight.T
    bias = getattr(gate, "e_score_correction_bias", None)
    scoring = replace(scoring, bias=bias)
    weights, found = scoring.route(
        logits, plan.layers[1].top_k, make_policy(plan.layers[1], scoring.score_kind)
    )
    order, expected = found.sort(-1).indices, trace.expert_ids.sort(-1)
    assert (found.gather(-1, order) == expected.values).all()
    torch.testing.assert_close(
        weights.gather(-1, order), trace.weights.gather(-1, expected.indices), atol=1e-6, rtol=1e-5
    )


POLICIES = {"c2r": 4.0, "group_limited": 2.0, "budgeted": 0.1, "pruned": 0.1, "priced": 0.2}


def policy_of(name, kind):
    layer = LayerPlan(
        name="",
        num_experts=16,
        top_k=4,
        policy=name,
        strength=POLICIES[name],
        partners=torch.stack([(torch.arange(5) + e + 1) % 16 for e in range(16)]).numpy(),
        placement=(torch.arange(16) % 4).numpy(),
    )
    return make_policy(layer, kind)


@pytest.mark.parametrize("scoring", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_read_back_to_the_host(name, scoring):
    """On `meta` there are shapes only: what asks for a value raises."""
    chosen = SCORINGS[scoring]
    bias = None if chosen.bias is None else chosen.bias.to("meta")
    policy = policy_of(name, chosen.score_kind).to("meta")
    logits = torch.empty(64, 16, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        logits.sum().item()
    weights, ids = replace(chosen, bias=bias).route(logits, 4, policy)
    assert weights.shape == ids.shape == (64, 4)


@pytest.mark.parametrize("scoring", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize("name", POLICIES)
def test_routing_compiles_into_one_graph(name, scoring):
    torch.compiler.reset()  # it counts how often one function was compiled
    chosen = SCORINGS[scoring]
    chosen = replace(chosen, bias=None if chosen.bias is None else torch.linspace(-0.1, 0.1, 16))
    policy = policy_of(name, chosen.score_kind)
    logits = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    expected = chosen.route(logits, 4, policy)
    route = torch.compile(
        lambda rows: chosen.route(rows, 4, policy), fullgraph=True, backend="eager"
    )
    found = route(logits)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
