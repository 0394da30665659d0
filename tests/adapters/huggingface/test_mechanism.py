"""The tap under the ways that people run models: compiled, checkpointed, copied, dispatched."""

import copy

import pytest
import torch
from accelerate import dispatch_model

from c2r.adapters.huggingface import apply, capture, constraint_report, find_sites, remove
from c2r.errors import ModelError
from tests.adapters.huggingface.checks import gradients, random_plan, run, small_plan, token_ids
from tests.adapters.huggingface.families import FAMILIES, IS_OLD, Family

BY_NAME = {family.name: family for family in FAMILIES}


def some(*names: str) -> pytest.MarkDecorator:
    families = [BY_NAME[name] for name in names]
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


@some("qwen2_moe", "gpt_oss", "deepseek_v3 (groups)", "minimax_m2")
def test_experts_implementations_agree(family: Family) -> None:
    model = family.model("eager")
    apply(model, small_plan(find_sites(model)))
    eager = run(model)
    model.set_experts_implementation("grouped_mm")
    torch.testing.assert_close(run(model), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@some("mixtral", "olmoe", "granitemoe", "deepseek_v3", "dots1")
def test_checkpointing_gives_the_same_gradients(family: Family) -> None:
    model = family.model("grouped_mm")
    apply(model, small_plan(find_sites(model)))
    expected = gradients(model)
    counted = constraint_report(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
    for name, report in constraint_report(model).items():
        assert report.num_tokens == 2 * counted[name].num_tokens, "recomputing counts no token"


@pytest.mark.skipif(IS_OLD, reason="grouped experts of transformers compile from 5.23 on")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@some("qwen2_moe", "deepseek_v3 (groups)", "gpt_oss", "phimoe")
def test_compiles_to_one_graph(family: Family) -> None:
    model = family.model("grouped_mm")
    unconstrained = run(model)
    apply(model, small_plan(find_sites(model)))
    expected, expected_gradients = run(model), gradients(model)
    counted = constraint_report(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            torch.testing.assert_close(run(compiled), expected)
    assert not torch.equal(expected, unconstrained)
    assert constraint_report(model) == counted, "compiled forwards do not count"
    for name, gradient in gradients(compiled).items():
        torch.testing.assert_close(gradient, expected_gradients[name.removeprefix("_orig_mod.")])


@some("mixtral", "dbrx", "phimoe", "longcat_flash")
def test_a_copy_is_constrained_on_its_own(family: Family) -> None:
    model = family.model("eager")
    unconstrained = run(model)
    apply(model, small_plan(find_sites(model)))
    constrained = run(model)
    twin = copy.deepcopy(model)
    counted = constraint_report(model)
    assert torch.equal(run(twin), constrained)
    assert constraint_report(model) == counted
    remove(twin)
    assert torch.equal(run(twin), unconstrained)
    assert torch.equal(run(model), constrained)


def test_a_dispatched_model_is_constrained() -> None:
    model = BY_NAME["qwen2_moe"].model("eager")
    plan = small_plan(find_sites(model))
    apply(model, plan)
    expected = run(model)
    remove(model)
    dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    apply(model, plan)
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@some("qwen2_moe", "gpt_oss", "deepseek_v3 (groups)", "phimoe")
def test_half_precision(family: Family, dtype: torch.dtype) -> None:
    model = family.model("eager").to(dtype)
    sites = find_sites(model)
    before = run(model)
    apply(model, random_plan(sites))
    assert torch.equal(run(model), before)
    apply(model, small_plan(sites))
    assert run(model).isfinite().all()


def test_a_later_plan_replaces_the_earlier() -> None:
    model = BY_NAME["olmoe"].model()
    sites = find_sites(model)
    before = run(model)
    apply(model, small_plan(sites))
    assert not torch.equal(run(model), before)
    apply(model, random_plan(sites))
    assert torch.equal(run(model), before)


def test_remove_without_a_plan_does_nothing() -> None:
    model = BY_NAME["olmoe"].model()
    remove(model)
    assert constraint_report(model) == {}


def test_the_part_of_a_constrained_model_is_refused() -> None:
    model = BY_NAME["olmoe"].model()
    apply(model, small_plan(find_sites(model)))
    with pytest.raises(ModelError, match="give that model"):
        find_sites(model.model)


def test_generation_is_constrained() -> None:
    model = BY_NAME["mixtral"].model()
    sites = find_sites(model)
    plan = small_plan(sites)
    apply(model, plan)
    with capture(model) as recorder:
        model.generate(token_ids(), max_new_tokens=4, do_sample=False, pad_token_id=0)
        layer = recorder.take().layers[0]
    assert layer.num_tokens == 2
    for first, *others in layer.expert_ids.tolist():
        assert set(others) <= set(plan.layers[0].partners[first].tolist())


def test_phimoe_samples_among_the_allowed_while_training() -> None:
    model = BY_NAME["phimoe"].model().train()
    plan = random_plan(find_sites(model), 2)
    apply(model, plan)
    chosen = set()
    with capture(model) as recorder:
        for seed in range(10):
            torch.manual_seed(seed)
            run(model)
            for layer, lists in zip(recorder.take().layers, plan.layers, strict=True):
                for first, second in layer.expert_ids.tolist():
                    assert second in lists.partners[first]
                    chosen.add((first, second))
    assert len(chosen) > 8, "both partners of an expert are drawn"
