"""A tiny random Llama, split: the mixture is the dense model where nothing is left out."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("scipy")
from benchmarks.base_model.masked_experts import use_experts
from benchmarks.base_model.settings import Settings
from benchmarks.base_model.splitting import (
    build_mixture,
    dense_as_mixture,
    ffn_inputs,
    group_neurons,
    split_layer,
)
from c2r.measuring import measure

SETTINGS = Settings(num_experts=4, top_k=2, num_shared=16, router_scale=1.0)


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(1))


def split(dense, ids, settings):
    inputs = ffn_inputs(dense, ids)
    return [
        split_layer(rows, layer.mlp, settings, seed)
        for seed, (rows, layer) in enumerate(zip(inputs, dense.model.layers, strict=True))
    ]


def mixture(dense, ids, settings):
    return build_mixture(dense, [found for found, _ in split(dense, ids, settings)], settings)


@pytest.mark.parametrize("num_shared", [0, 16])
def test_with_all_experts_and_a_flat_router_it_is_the_dense_model(dense, ids, num_shared):
    settings = replace(SETTINGS, num_shared=num_shared, top_k=4, router_scale=0.0)
    model = mixture(dense, ids, settings)
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, atol=1e-5, rtol=1e-4)
    wrong = mixture(dense, ids, replace(settings, top_k=2))
    assert (wrong(ids).logits - dense(ids).logits).abs().max() > 1e-3


def test_the_dense_model_as_a_mixture(dense, ids):
    model = dense_as_mixture(dense, SETTINGS)
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, atol=1e-5, rtol=1e-4)
    copies = measure(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]).copies
    assert copies == 1, "c2r takes it"


def test_every_neuron_is_in_one_place_and_figures_are_shares(dense, ids):
    for found, figures in split(dense, ids, SETTINGS):
        neurons = torch.cat([found.shared, found.experts.flatten()])
        assert sorted(neurons.tolist()) == list(range(48))
        assert found.experts.shape == (4, 8)
        assert 16 / 48 < figures["shared"] < 1, "the shared neurons are the strongest"
        assert 0.5 < figures["routed"] <= figures["best"] < 1


def test_routers_learn_who_answers(dense, ids):
    """Where each expert answers to its own direction, the router finds it."""
    torch.manual_seed(2)
    found, _ = split(dense, ids, replace(SETTINGS, num_shared=0))[0]
    mlp = dense.model.layers[0].mlp
    directions = torch.linalg.qr(torch.randn(32, 32))[0][:4] * 5
    with torch.no_grad():
        for expert, neurons in enumerate(found.experts):
            mlp.gate_proj.weight[neurons] = directions[expert]
            mlp.up_proj.weight[neurons] = directions[expert]
    own = torch.randint(4, (600,))
    inputs = directions[own] + 0.1 * torch.randn(600, 32)
    again, figures = split_layer(inputs, mlp, replace(SETTINGS, num_shared=0, top_k=1), 0)
    for neurons in again.experts:
        assert any(set(neurons.tolist()) == set(old.tolist()) for old in found.experts)
    assert figures["routed"] > 0.95


def test_groups_are_equal_and_hold_what_answers_together():
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(200, 3, generator=generator)
    kinds = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2])
    strengths = causes[:, kinds] + 0.01 * torch.rand(200, 9, generator=generator)
    groups = group_neurons(strengths, 3, seed=0)
    assert groups.bincount().tolist() == [3, 3, 3]
    assert all(len(groups[kinds == kind].unique()) == 1 for kind in range(3))


def test_masked_experts_compute_what_transformers_does(dense, ids):
    model = mixture(dense, ids, SETTINGS)
    inputs = dense.model.embed_tokens(ids).detach()
    usual = model(inputs_embeds=inputs.requires_grad_()).logits
    (gradient,) = torch.autograd.grad(usual.square().sum(), inputs)
    use_experts(model)
    masked = model(inputs_embeds=inputs).logits
    torch.testing.assert_close(masked, usual)
    torch.testing.assert_close(
        torch.autograd.grad(masked.square().sum(), inputs)[0], gradient, atol=1e-3, rtol=1e-3
    )
