"""What each mode trains, under which routing, towards what."""

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

import c2r
from c2r.adapters.huggingface import applied_plan, prepare
from c2r.errors import InputError, PlanMismatchError
from c2r.measuring import unconstrained
from c2r.plans import Plan
from c2r.training import FinetuneSettings, finetune
from c2r.training.trainable import Teacher, router_parameters, training_only
from c2r.training.trainer import ShuffledWindows
from tests.adapters.huggingface.families import FAMILIES
from tests.training.material import examples, plan_of, tiny

SETTINGS = FinetuneSettings(num_steps=3, batch_size=4, learning_rate=1e-3, log_every=1)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(before, model):
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def test_a_step_is_that_of_a_loop_by_hand():
    ours, plain = tiny(), tiny()
    plan, data, before = plan_of(ours), examples(8), weights(ours)
    settings = replace(SETTINGS, num_steps=2, accumulation=2, weight_decay=0.0)
    result = finetune(ours, data, plan, settings)
    c2r.apply(plain, plan)
    plain.train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    order = np.random.default_rng([0, 0]).permutation(8)
    for step, rate in enumerate((1e-3, 5e-4)):
        rows = [data[index] for index in order[4 * step : 4 * step + 4]]
        loss = sum(summed_loss(plain, row) for row in rows)
        loss = loss / sum((row["labels"][1:] != -100).sum() for row in rows)
        assert result.log[step]["lm_loss"] == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    for name, mine in ours.named_parameters():  # AdamW blows up roundings of small gradients
        theirs = plain.get_parameter(name)
        assert (mine - theirs).norm() < 0.05 * (theirs - before[name]).norm(), name


def summed_loss(model, row):
    """Piece by piece, so that packing is seen to keep them apart."""
    starts = [*(row["position_ids"] == 0).nonzero().flatten().tolist(), len(row["input_ids"])]
    total = 0.0
    for start, end in pairwise(starts):
        ids = row["input_ids"][None, start:end]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits, ids[0, 1:], reduction="sum")
    return total


def test_full_trains_everything_under_the_plan_that_stays():
    model = tiny()
    plan, before = plan_of(model), weights(model)
    result = finetune(model, examples(8), plan, SETTINGS)
    assert changed(before, model) == set(before)
    assert result.num_trainable == sum(p.numel() for p in model.parameters())
    assert applied_plan(model).fingerprint == plan.fingerprint
    assert not model.training and model.config.use_cache and "forward" not in model.__dict__
    assert [entry["step"] for entry in result.log[:3]] == [1, 2, 3]
    entry = result.log[0]
    assert 1 <= entry["copies_per_token"] < 2.5 and entry["rank_load_max_over_mean"] >= 1
    assert 1 < entry["effective_collaborators"] < 31


def test_router_trains_routers_and_nothing_else():
    model = tiny()
    before = weights(model)
    result = finetune(model, examples(8), plan_of(model), replace(SETTINGS, mode="router"))
    assert changed(before, model) == set(router_parameters(model))
    assert result.num_trainable == 4 * 32 * 128
    assert all(p.requires_grad for p in model.parameters())


def test_router_mode_builds_no_graph_below_the_first_router():
    model = tiny()
    seen = {}
    gate = model.model.layers[0].mlp.gate
    handle = gate.register_forward_pre_hook(lambda _, args: seen.update(into=args[0]))
    with training_only(model, "router", 1):
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        model(input_ids=torch.arange(8)[None], use_cache=False)
    handle.remove()
    assert trained == set(router_parameters(model))
    assert not seen["into"].requires_grad


def test_weights_that_others_replace_while_they_train_are_freed():
    model = tiny()
    norm = model.model.norm
    with training_only(model, "full", 1, routers=False):
        before = weakref.ref(norm.weight)
        norm.weight = torch.nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        gc.collect()
        assert before() is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_lora_trains_adapters_and_routers_and_merges_them():
    model = tiny()
    plan, before = plan_of(model), weights(model)
    c2r.apply(model, plan)
    names = [name for name, _ in model.named_modules()]
    result = finetune(model, examples(8), plan, replace(SETTINGS, mode="lora"))
    assert [name for name, _ in model.named_modules()] == names
    routers = set(router_parameters(model))
    touched = changed(before, model)
    assert routers < touched
    assert "model.layers.0.self_attn.q_proj.weight" in touched
    assert not {name for name in touched if ".experts." in name or "embed" in name}
    assert 16_384 < result.num_trainable < 200_000


@pytest.mark.parametrize("mode", ["router", "lora"])
def test_the_teacher_is_the_original_and_takes_a_tenth_at_most(mode):
    model, ids = tiny(), torch.arange(40)[None]
    plan = plan_of(model, strength=0.3)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
    free, current = prepare(model, unconstrained(plan)), prepare(model, plan)
    with training_only(model, mode, 4) as trained:
        routers = router_parameters(model).values()
        teacher = Teacher(
            model=model,
            free=free,
            adapted=trained if mode == "lora" else None,
            originals={p: p.detach().clone() for p in routers},
        )
        torch.manual_seed(0)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter)
        tuned = weights(trained)
        with torch.no_grad(), teacher.in_place(current):
            torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected)
        assert not changed(tuned, trained)
        assert applied_plan(model).fingerprint == plan.fingerprint
        with torch.no_grad():
            assert (model(input_ids=ids, use_cache=False).logits - expected).abs().max() > 0.1
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    held = sum(
        original.numel() * original.element_size() for original in teacher.originals.values()
    )
    assert 0 < held < 0.1 * size


def test_the_anchor_draws_towards_the_unconstrained_model():
    plan = plan_of(tiny(), strength=0.5)
    settings = replace(SETTINGS, num_steps=12, mode="router")
    free, anchored = (
        finetune(tiny(), examples(16), plan, replace(settings, kl_weight=weight)).log
        for weight in (1e-9, 20.0)
    )
    assert free[0]["kl"] == pytest.approx(anchored[0]["kl"])
    assert anchored[11]["kl"] < 0.9 * free[11]["kl"]
    assert anchored[0]["loss"] == pytest.approx(
        anchored[0]["lm_loss"] + 20 * anchored[0]["kl"], rel=1e-5
    )


def test_the_balance_loss_evens_the_load_and_takes_the_models_weight():
    plan = plan_of(tiny(), "group_limited", 1)
    settings = replace(SETTINGS, num_steps=12, learning_rate=3e-3)
    free, even = (
        finetune(tiny(), examples(16), plan, replace(settings, aux_weight=weight)).log
        for weight in (1e-9, 1.0)
    )
    assert even[11]["aux_loss"] < free[11]["aux_loss"] - 0.05
    own = tiny(output_router_logits=True)
    entry = finetune(own, examples(16), plan, replace(SETTINGS, num_steps=1)).log[0]
    assert entry["loss"] == pytest.approx(entry["lm_loss"] + 0.01 * entry["aux_loss"], rel=1e-5)
    assert own.config.output_router_logits


def test_recomputation_and_bfloat16_give_about_the_same():
    data, plan = examples(8), plan_of(tiny())
    settings = replace(SETTINGS, aux_weight=0.01, kl_weight=0.1)
    exact = finetune(tiny(), data, plan, settings).log
    model = tiny()
    recomputed = finetune(model, data, plan, replace(settings, gradient_checkpointing=True)).log
    assert not model.is_activation_checkpointing
    rounded = finetune(tiny(), data, plan, replace(settings, bf16=True)).log
    for ours, again, coarse in zip(exact[:3], recomputed[:3], rounded[:3], strict=True):
        assert again["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert coarse["loss"] == pytest.approx(ours["loss"], rel=0.01)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "phimoe", "dbrx"])
def test_other_families(name):
    model = next(family for family in FAMILIES if family.name == name).model()
    data = [{key: value % 90 for key, value in row.items()} for row in examples(8)]
    data = [{**row, "labels": row["input_ids"]} for row in data]
    plan = plan_of(model, "c2r", 4, partners=4, num_ranks=2)
    settings = replace(SETTINGS, mode="lora", kl_weight=0.1, gradient_checkpointing=True)
    before = weights(model)
    log = finetune(model, data, plan, replace(settings, aux_weight=0.01)).log
    assert log[2]["kl"] > 0 and log[2]["aux_loss"] > 0
    assert set(router_parameters(model)) & changed(before, model)


def test_a_model_that_recomputes_reentrantly_is_refused():
    model = tiny()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="use_reentrant=True"):
        finetune(model, examples(8), plan_of(model), SETTINGS)


def test_control_sees_the_same_data_without_the_constraint():
    seen = {False: [], True: []}

    class Watcher(TrainerCallback):
        def __init__(self, control):
            self.control = control

        def on_step_end(self, args, state, control, model=None, train_dataloader=None, **_):
            dataset = train_dataloader.dataset
            order = [dataset[index]["input_ids"].tolist() for index in range(len(dataset))]
            policies = {layer.policy for layer in applied_plan(model).layers}
            seen[self.control].append((order, policies))

    plan = plan_of(tiny())
    for control in (False, True):
        settings = replace(SETTINGS, control=control)
        finetune(tiny(), examples(8), plan, settings, callbacks=[Watcher(control)])
    assert [order for order, _ in seen[True]] == [order for order, _ in seen[False]]
    assert seen[True][0][1] == {"top_k"} and seen[False][0][1] == {"priced"}


def test_strength_is_annealed_step_by_step():
    strengths = []

    class Watcher(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            strengths.append(applied_plan(model).layers[0].strength)

    settings = replace(SETTINGS, num_steps=6, anneal_steps=4)
    finetune(tiny(), examples(8), plan_of(tiny(), strength=0.4), settings, callbacks=[Watcher()])
    assert strengths == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_the_plan_is_in_force_at_the_end_however_long_the_annealing():
    model = tiny()
    plan = plan_of(model)
    finetune(model, examples(8), plan, replace(SETTINGS, anneal_steps=100))
    assert applied_plan(model).fingerprint == plan.fingerprint


def test_every_window_comes_once_before_any_comes_again():
    data = [{"input_ids": torch.tensor([index])} for index in range(5)]
    shuffled = ShuffledWindows(data, FinetuneSettings(num_epochs=2, batch_size=5, seed=3))
    order = [int(row["input_ids"]) for row in shuffled]
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5)) and order[:5] != order[5:]


def test_what_does_not_fit_is_refused():
    model = tiny()
    plan = plan_of(model)
    with pytest.raises(InputError, match="no windows"):
        finetune(model, [], plan, SETTINGS)
    with pytest.raises(InputError, match="batch_size 4 cannot be split into 3 passes"):
        finetune(model, examples(4), plan, replace(SETTINGS, accumulation=3))
    smaller = Plan(layers=plan.layers[:3], topology=plan.topology)
    with pytest.raises(PlanMismatchError, match="the plan is for 3 layers"):
        finetune(model, examples(4), smaller, SETTINGS)
