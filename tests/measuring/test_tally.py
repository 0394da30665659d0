import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from c2r.measuring import RoutingTally, Tally
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.traces import LayerTrace, RoutingTrace, ScoreKind

PLAN = Plan(
    layers=(LayerPlan(num_experts=6, top_k=3, placement=np.array([0, 3, 3, 2, 1, 0])),),
    topology=ClusterTopology(num_ranks=4, num_nodes=2),
)


def trace(ids):
    ids = torch.tensor(ids)
    scores = torch.zeros(len(ids), 6)
    layer = LayerTrace(
        name="", expert_ids=ids, weights=None, scores=scores, score_kind=ScoreKind.LOGITS
    )
    return RoutingTrace(layers=(layer,))


def test_routing_by_hand():
    """Tokens on ranks {0, 3, 3} and, the second place dropped, {2, 1}."""
    counted = RoutingTally.count(trace([[0, 1, 2], [3, 3, 4]]), PLAN)
    assert counted.num_tokens.tolist() == [2]
    assert counted.copies.tolist() == [2 + 2]
    assert counted.node_copies.tolist() == [2 + 2]
    # In order the ranks are [0, 0, 1, 1, 2, 3].
    assert counted.copies_in_order.tolist() == [2 + 2]
    assert counted.rank_rows.tolist() == [[1, 1, 1, 2]]
    assert counted.active_experts.tolist() == [5 / 4]


def test_a_token_takes_the_replica_on_a_rank_that_it_visits():
    """Expert 1 lives on rank 3 only, and so takes experts 0 and 2 there."""
    (layer,) = PLAN.layers
    replicated = replace(layer, replicas=np.array([[2], [0], [0], [0]]))
    plan = replace(PLAN, layers=(replicated,))
    counted = RoutingTally.count(trace([[0, 1, 2], [3, 3, 4]]), plan)
    assert counted.copies.tolist() == [1 + 2]
    assert counted.rank_rows.tolist() == [[0, 1, 1, 3]]


def test_figures_by_hand():
    tally = Tally()
    tally.add_routing(RoutingTally.count(trace([[0, 1, 2], [3, 3, 4]]), PLAN))
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    reference = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    tally.add_window(logits, reference, torch.tensor([0, 1]))
    found = tally.measured(PLAN)
    loss = (np.log(2) + np.log1p(np.exp(-2))) / 2
    p = 1 / (1 + np.exp(-1))
    kl = (p * np.log(p) + (1 - p) * np.log(1 - p) + np.log(2)) / 2
    assert found.loss == pytest.approx(loss) and found.perplexity == pytest.approx(np.exp(loss))
    assert found.kl == pytest.approx(kl)
    assert (found.top1_agreement, found.num_tokens) == (1.0, 2)
    assert (found.copies, found.remote_copies, found.node_copies) == (2.0, 1.5, 2.0)
    assert found.rank_load_max_over_mean == pytest.approx(2 / (5 / 4))
    assert (found.policy, found.strength, found.num_ranks) == ("top_k", 0.0, 4)
    assert (found.loss_increase, found.loss_increase_interval) == (0.0, (0.0, 0.0))
    assert found.plan_fingerprint == PLAN.fingerprint


def test_layers_that_differ_are_told():
    tally = Tally()
    tally.add_routing(RoutingTally.count(trace([[0, 1, 2]]), PLAN))
    tally.add_window(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
    layers = [
        replace(PLAN.layers[0], policy=policy, strength=strength)
        for policy, strength in (("priced", 0.1), ("top_k", 0.0), ("priced", 0.2))
    ]
    found = tally.measured(replace(PLAN, layers=tuple(layers)))
    assert (found.policy, found.strength) == ("priced+top_k", (0.1, 0.0, 0.2))


def test_a_masked_vocabulary_gives_a_finite_divergence():
    tally = Tally()
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    tally.add_window(logits, logits, torch.tensor([0]))
    assert tally.kl == 0.0


def test_the_interval_is_that_of_paired_differences():
    reference, tally = Tally(), Tally()
    rng = np.random.default_rng(0)
    base = rng.normal(100, 30, 50)
    reference.losses, reference.num_predicted = base.tolist(), [64] * 50
    steps = rng.normal(0.5, 0.2, 50)
    tally.losses, tally.num_predicted = (base + steps).tolist(), [64] * 50
    increase, (low, high) = tally.loss_increase(reference)
    assert increase == pytest.approx(steps.sum() / base.sum())
    half = 1.96 * steps.std(ddof=1) / np.sqrt(50) / base.mean()
    assert (low, high) == pytest.approx((increase - half, increase + half))
    assert reference.loss_increase(reference) == (0.0, (0.0, 0.0))


def test_sums_survive_json():
    tally = Tally()
    assert Tally.from_json(tally.to_json()).routing is None
    tally.add_routing(RoutingTally.count(trace([[0, 1, 2]]), PLAN))
    tally.add_window(torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    again = Tally.from_json(json.loads(json.dumps(tally.to_json())))
    assert again.measured(PLAN) == tally.measured(PLAN)
    again.add_routing(RoutingTally.count(trace([[3, 3, 4]]), PLAN))
    assert again.measured(PLAN).copies == 2.0
