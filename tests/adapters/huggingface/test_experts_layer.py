"""transformers' experts on `c2r`'s layer, against transformers' own implementations."""

import pytest
import torch

from tests.adapters.huggingface.checks import gradients, run
from tests.adapters.huggingface.test_mechanism import some
from tests.ops.kernels import require_interpreter


@pytest.mark.parametrize("peer", ["eager", "grouped_mm"])
@some("qwen2_moe", "mixtral", "olmoe", "gpt_oss", "deepseek_v3 (groups)")
def test_outputs_and_gradients_are_those_of_transformers(family, peer):
    model = family.model(peer)
    expected, expected_gradients = run(model), gradients(model)
    model.set_experts_implementation("c2r")
    torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-5)
    found = gradients(model)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@some("qwen2_moe", "gpt_oss")
def test_checkpointing_gives_the_same_gradients(family):
    model = family.model("c2r")
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


@some("mixtral", "gpt_oss")
def test_kernels_under_the_model_change_nothing(family, monkeypatch):
    require_interpreter()
    model = family.model("c2r")
    expected, expected_gradients = run(model), gradients(model)
    monkeypatch.setenv("C2R_BACKEND", "triton")
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-6)


@some("qwen2_moe", "gpt_oss")
def test_ids_for_no_expert_add_nothing(family):
    model = family.model("c2r")
    experts = next(m for m in model.modules() if hasattr(m, "_is_expert_parallel"))
    width = model.config.hidden_size
    hidden = torch.randn(7, width, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(21).view(7, 3) % experts.num_experts
    weights = torch.rand(7, 3, generator=torch.Generator().manual_seed(1))
    expected = experts(hidden, ids, weights.masked_fill(ids == 2, 0.0))
    experts._is_expert_parallel = True
    found = experts(
        hidden.requires_grad_(),
        ids.masked_fill(ids == 2, experts.num_experts),
        weights.masked_fill(ids == 2, 0.0),
    )
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert hidden.grad.isfinite().all()
