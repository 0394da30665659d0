import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from c2r.adapters.huggingface import find_sites
from c2r.errors import ModelError
from tests.adapters.huggingface.checks import run
from tests.adapters.huggingface.families import FAMILIES, SIZES

BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize("name", ["qwen2_moe", "zaya", "deepseek_v4", "phimoe", "nemotron_h"])
def test_probing_leaves_no_trace(name: str) -> None:
    model = BY_NAME[name].model().train()
    next(model.children()).eval()
    before = copy.deepcopy(model)
    attributes = [sorted(vars(module)) for module in model.modules()]
    random_state = torch.get_rng_state()
    find_sites(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert not any(module._forward_hooks for module in model.modules())
    for (name, found), (_, expected) in zip(
        model.named_buffers(), before.named_buffers(), strict=True
    ):
        assert torch.equal(found, expected), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_buffer_that_counts_is_put_back() -> None:
    model = BY_NAME["mixtral"].model()
    layer = model.model.layers[0]
    layer.register_buffer("num_calls", torch.zeros(()))
    layer.register_forward_hook(lambda module, *_: module.num_calls.add_(1) and None)
    find_sites(model)
    assert layer.num_calls == 0
    run(model)
    assert layer.num_calls == 1


def test_equal_routers_are_told_apart() -> None:
    model = BY_NAME["mixtral"].model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    assert len(find_sites(model)) == 2


def test_sites_tell_each_layers_own_k() -> None:
    sites = find_sites(BY_NAME["hunyuan_v1_moe (per layer)"].model())
    assert [site.top_k for site in sites] == [2, 4]


def test_experts_that_compute_nothing_are_free() -> None:
    site = find_sites(BY_NAME["longcat_flash"].model())[0]
    assert (site.num_experts, site.num_free_experts) == (12, 4)


def test_hash_layers_are_skipped() -> None:
    assert [s.name for s in find_sites(BY_NAME["deepseek_v4"].model())] == [
        "model.layers.1.mlp.gate"
    ]


def test_attention_experts_are_skipped() -> None:
    names = [site.name for site in find_sites(BY_NAME["jetmoe"].model())]
    assert names == ["model.layers.0.mlp.router", "model.layers.1.mlp.router"]


def dense(model_type: str, **options: Any) -> Any:
    known = CONFIG_MAPPING[model_type]().to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**sizes, **options}))


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"llama is not a Mixture-of-Experts.*register_router"):
        find_sites(dense("llama"))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("doge", "product-key"), ("nllb-moe", "capacity"), ("switch_transformers", "one expert")],
)
def test_unsupported_families_are_refused_with_the_reason(model_type: str, reason: str) -> None:
    model = nn.Linear(2, 2)
    model.config = CONFIG_MAPPING[model_type]()
    with pytest.raises(ModelError, match=rf"{model_type} is not supported: .*{reason}"):
        find_sites(model)


def test_an_unknown_router_is_refused() -> None:
    model = BY_NAME["qwen2_moe"].model()
    gate = model.model.layers[1].mlp.gate
    gate.forward = lambda hidden: (
        None,
        torch.full((hidden.shape[0], 3), 0.3),
        torch.arange(3).expand(hidden.shape[0], 3).contiguous(),
    )
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts is handed experts that no"):
        find_sites(model)


def test_a_model_that_needs_more_than_token_ids_is_refused() -> None:
    model = BY_NAME["qwen2_moe"].model()
    with pytest.raises(ModelError, match=r"cannot run on 8 token ids alone .*register_router"):
        find_sites(model.model.layers[0])


def test_a_model_without_weights_is_refused() -> None:
    model = BY_NAME["qwen2_moe"].model().to("meta")
    with pytest.raises(ModelError, match="35 of 35 weights on the meta device"):
        find_sites(model)
