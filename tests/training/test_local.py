"""The local objective of routers against sums taken by hand."""

from dataclasses import replace

import pytest
import torch

import c2r
from c2r.errors import InputError
from c2r.training import FinetuneSettings, finetune
from c2r.training.local import local_objective
from c2r.training.trainable import router_parameters, training_only
from tests.training.material import examples, plan_of, text_bytes, tiny


@pytest.fixture
def inputs():
    ids = torch.tensor([list(text_bytes()[start : start + 32]) for start in (0, 900)])
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    return ids, mask.flatten().bool()


def watch(module):
    seen = {}
    module.register_forward_hook(lambda _, args, output: seen.update(args=args, output=output))
    return seen


def test_its_value_gradient_and_output_are_those_by_hand(inputs):
    ids, mask = inputs
    model, original = tiny(), tiny()
    plan = plan_of(model, strength=0.3)
    c2r.apply(model, plan)
    expected_output = model.model(input_ids=ids, use_cache=False).last_hidden_state
    with training_only(model, "router", 1):
        originals = {p: p.detach().clone() for p in router_parameters(model).values()}
        gate = model.model.layers[0].mlp.gate
        gate.weight.data += 0.01 * torch.randn_like(gate.weight)
        into = watch(model.model.layers[0].mlp.gate)
        with local_objective(model, originals, mask) as losses:
            output = model.model(input_ids=ids, use_cache=False).last_hidden_state
        assert len(losses) == 4 and not output.requires_grad
        assert "forward" not in model.model.layers[0].mlp.experts.__dict__
        losses[0].backward()
        hidden = into["args"][0].detach()
    block = original.model.layers[0].mlp
    _, weights, wanted = block.gate(hidden)
    target = block.experts(hidden, wanted, weights)
    _, weights, chosen = gate(hidden)
    tokens = mask.nonzero()[::4, 0]
    error = (block.experts(hidden, chosen, weights) - target)[tokens].square().mean()
    expected = error / target[tokens].square().mean()
    torch.testing.assert_close(losses[0], expected, rtol=1e-4, atol=1e-7)
    (gradient,) = torch.autograd.grad(expected, gate.weight)
    torch.testing.assert_close(gate.weight.grad, gradient, rtol=1e-3, atol=1e-6)
    gate.weight.data = originals[gate.weight]
    again = model.model(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(again, expected_output, rtol=0, atol=0)


def test_without_constraint_there_is_nothing_to_learn(inputs):
    ids, mask = inputs
    model = tiny()
    c2r.apply(model, plan_of(model, "top_k", 0))
    originals = {p: p.detach().clone() for p in router_parameters(model).values()}
    with torch.no_grad(), local_objective(model, originals, mask) as losses:
        model(input_ids=ids, use_cache=False)
    assert max(losses) < 1e-10


def test_training_by_it_brings_layers_closer_to_the_original():
    settings = FinetuneSettings(
        mode="router", loss="local", num_steps=25, batch_size=8, learning_rate=3e-4, log_every=5
    )
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    log = finetune(model, examples(8), plan_of(model, strength=0.5), settings).log
    assert log[4]["local_loss"] < 0.98 * log[0]["local_loss"]
    assert "lm_loss" not in log[0] and log[0]["copies_per_token"] >= 1
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(router_parameters(model))


def test_it_is_for_routers_alone():
    with pytest.raises(InputError, match="loss local is for mode router"):
        FinetuneSettings(loss="local")
    settings = FinetuneSettings(mode="router", loss="local")
    with pytest.raises(InputError, match="without kl_weight"):
        replace(settings, kl_weight=1.0)
    with pytest.raises(InputError, match="choose lm, local"):
        replace(settings, loss="mse")
