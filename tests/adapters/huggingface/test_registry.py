"""LLaMA-MoE's gate, re-made from its description: it asks for one expert more than it uses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2r.adapters.huggingface import (
    RouterSpec,
    apply,
    capture,
    constraint_report,
    find_sites,
    register_router,
    remove,
)
from c2r.errors import ModelError
from tests.adapters.huggingface.checks import expected_choice, random_plan


class TopKBalancedNoisyGate(nn.Module):
    def __init__(self, size: int, num_experts: int, num_selects: int) -> None:
        super().__init__()
        self.num_experts, self.num_selects = num_experts, num_selects
        self.gate = nn.Linear(size, num_experts, bias=False)
        self.noise = nn.Linear(size, num_experts, bias=False)

    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.gate(x)
        if self.training:
            logits = logits + torch.randn_like(logits) * nn.functional.softplus(self.noise(x))
        best, ids = logits.topk(min(self.num_selects + 1, self.num_experts), dim=1)
        ids = ids[:, : self.num_selects]
        scores = best[:, : self.num_selects].softmax(1)
        dense = torch.zeros_like(logits).scatter(1, ids, scores)
        importance, load = dense.sum(0), (dense > 0).sum(0)
        balance_loss = importance.var() / importance.mean() ** 2
        return {
            "topK_indices": ids,
            "topK_scores": scores,
            "balance_loss": balance_loss,
            "load": load,
            "importance": importance,
        }


class SparseModel(nn.Module):
    """One such layer, as remote code: no config, no embeddings."""

    def __init__(self, num_selects: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = TopKBalancedNoisyGate(16, 8, num_selects)
        self.experts = nn.Parameter(torch.randn(8, 16, 16) * 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        routed = self.gate(x)
        outputs = torch.einsum("td,tkdf->tkf", x, self.experts[routed["topK_indices"]])
        return (outputs * routed["topK_scores"][..., None]).sum(1), routed["balance_loss"]


TOKENS = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def test_the_gate_is_known() -> None:
    (site,) = find_sites(SparseModel())
    assert (site.name, site.num_experts, site.top_k, site.call_k) == ("gate", 8, 2, 3)
    (site,) = find_sites(SparseModel(num_selects=8))
    assert (site.top_k, site.call_k) == (8, 8)


@pytest.mark.parametrize("training", [False, True])
def test_full_lists_change_no_bit(training: bool) -> None:
    model = SparseModel().train(training)

    def outcome() -> list[Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        output, loss = model(TOKENS)
        (output.square().sum() + loss).backward()
        return [output, loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    before = outcome()
    apply(model, random_plan(find_sites(model)))
    after = outcome()
    remove(model)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert type(model.gate) is TopKBalancedNoisyGate


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("top_t", [1, 3])
def test_tight_lists_act_on_the_noisy_logits(training: bool, top_t: int) -> None:
    model = SparseModel().train(training)
    sites = find_sites(model)
    plan = random_plan(sites, top_t)
    apply(model, plan)
    with capture(model) as recorder:
        model(TOKENS)
        layer = recorder.take().layers[0]
    assert layer.weights is not None
    assert layer.expert_ids.shape == layer.weights.shape == (64, 2)
    for scores, ids in zip(layer.scores, layer.expert_ids, strict=True):
        assert ids.tolist() == expected_choice(scores, plan.layers[0], sites[0])
    chosen = layer.scores.gather(-1, layer.expert_ids)
    torch.testing.assert_close(layer.weights, chosen.softmax(-1))
    assert constraint_report(model)["gate"].num_tokens == 64


class RankingRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.active = 6, 2
        self.weight = nn.Parameter(torch.randn(6, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.topk(x @ self.weight.T, self.active)[1]


def test_a_router_of_ones_own() -> None:
    model = nn.Sequential(RankingRouter())
    spec = RouterSpec(class_name="RankingRouter", num_experts="width", top_k="active")
    register_router(spec)
    sites = find_sites(model)
    plan = random_plan(sites, 1)
    apply(model, plan)
    for first, second in model(TOKENS).tolist():
        assert second in plan.layers[0].partners[first]


def test_a_wrong_spec_is_told() -> None:
    class Misread(RankingRouter):
        pass

    register_router(RouterSpec(class_name="Misread", num_experts="size", top_k="active"))
    with pytest.raises(ModelError, match=r"'size'; correct its RouterSpec"):
        find_sites(nn.Sequential(Misread()))
