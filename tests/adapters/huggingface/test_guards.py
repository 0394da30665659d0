"""A router must never run unconstrained in silence."""

from types import MethodType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from c2r.adapters.huggingface import apply, find_sites, profile
from c2r.errors import RoutingError
from tests.adapters.huggingface.checks import run, small_plan, token_ids
from tests.adapters.huggingface.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


def constrained(name: str) -> Any:
    model = BY_NAME[name].model("eager")
    apply(model, small_plan(find_sites(model)))
    return model


def fused_forward(router: Any, hidden_states: torch.Tensor) -> Any:
    """As a kernel does it: no call of torch's top-k."""
    logits = F.linear(hidden_states.reshape(-1, router.hidden_dim), router.weight)
    order = logits.softmax(-1).argsort(descending=True)[:, : router.top_k]
    return logits, logits.softmax(-1).gather(-1, order), order


def test_a_fused_router_raises() -> None:
    model = constrained("qwen2_moe")
    gate = model.model.layers[1].mlp.gate
    gate.forward = MethodType(fused_forward, gate)
    with pytest.raises(
        RoutingError, match=r"layers\.1\.mlp\.gate .* 0 interceptions .* use_kernels"
    ):
        run(model)


def test_a_block_that_bypasses_its_router_raises() -> None:
    model = constrained("gpt_oss")
    block = model.model.layers[0].mlp
    block.forward = MethodType(lambda self, hidden: (hidden, None), block)
    with pytest.raises(RoutingError, match=r"layers\.0\.mlp\.router"):
        run(model)


def test_a_layer_that_does_not_run_is_no_error() -> None:
    model = constrained("mixtral")
    model.model.layers = model.model.layers[:1]
    assert run(model).isfinite().all()


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3 (groups)", "gpt_oss", "phimoe"])
def test_nan_scores_raise_and_name_the_layer(name: str) -> None:
    model = constrained(name)
    site = find_sites(model)[1]
    with torch.no_grad():
        next(site.module.parameters()).fill_(torch.nan)
    with pytest.raises(RoutingError, match=rf"{site.name} gave NaN scores"):
        run(model)


def test_nan_scores_raise_while_profiling() -> None:
    model = BY_NAME["qwen2_moe"].model()
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[3] = torch.nan
    with pytest.raises(RoutingError, match=r"layers\.0\.mlp\.gate gave NaN"):
        profile(model, [{"input_ids": token_ids()}])
    assert "_c2r_installation" not in vars(model)
