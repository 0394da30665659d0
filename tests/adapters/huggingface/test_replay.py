"""A model run with experts that were chosen elsewhere."""

import pytest
import torch

from c2r.adapters.huggingface import apply, capture, find_sites, remove, replay
from c2r.errors import InputError, ModelError, RoutingError
from tests.adapters.huggingface.checks import run, small_plan
from tests.adapters.huggingface.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


def chosen(model):
    with torch.no_grad(), capture(model) as recorder:
        output = run(model)
        return output, [layer.expert_ids for layer in recorder.take().layers]


@pytest.mark.parametrize(
    "name", ["mixtral", "qwen2_moe", "deepseek_v3 (groups)", "gpt_oss", "glm4_moe", "dbrx"]
)
def test_the_choice_of_a_constrained_model_makes_the_plain_one_answer_as_it_does(name):
    model = BY_NAME[name].model()
    plain, own_ids = chosen(model)
    apply(model, small_plan(find_sites(model)))
    constrained, ids = chosen(model)
    remove(model)
    before = {key: type(module) for key, module in model.named_modules()}
    with torch.no_grad(), replay(model, [layer.sort(-1).values for layer in ids]) as replayed:
        output = run(model)
    torch.testing.assert_close(output, constrained, atol=1e-6, rtol=1e-5)
    first = replayed.layers[0]  # the only one whose input is the same in both
    others = (ids[0].sort(-1).values != own_ids[0].sort(-1).values).any(-1)
    assert (first.num_tokens, first.num_tied) == (len(ids[0]), 0)
    assert first.num_other == int(others.sum())
    assert {key: type(module) for key, module in model.named_modules()} == before
    assert torch.equal(run(model), plain)


def test_a_model_under_the_plan_would_have_chosen_the_same():
    model = BY_NAME["qwen2_moe"].model()
    apply(model, small_plan(find_sites(model)))
    output, ids = chosen(model)
    with torch.no_grad(), replay(model, ids) as replayed:
        assert torch.equal(run(model), output)
    assert [(layer.num_tied, layer.num_other) for layer in replayed.layers] == [(0, 0)] * len(ids)


def test_experts_of_equal_scores_are_ties():
    model = BY_NAME["mixtral"].model()
    with torch.no_grad():
        for site in find_sites(model):
            site.module.weight[1] = site.module.weight[0]
    _, ids = chosen(model)
    layer = ids[0]
    has_one = (layer == 0).any(-1) != (layer == 1).any(-1)
    assert has_one.any()
    swapped = torch.where(layer == 0, 1, torch.where(layer == 1, 0, layer))
    with torch.no_grad(), replay(model, [swapped, *ids[1:]]) as replayed:
        run(model)
    assert replayed.layers[0].num_tied == int(has_one.sum())
    assert replayed.layers[0].num_other == 0


def test_several_forward_passes_go_on_in_the_trace():
    model = BY_NAME["qwen2_moe"].model()
    output, ids = chosen(model)
    once = [torch.cat([layer, layer]) for layer in ids]
    with torch.no_grad(), replay(model, once) as replayed:
        run(model)
        assert torch.equal(run(model), output)
        with pytest.raises(RoutingError, match="run the text that was traced"):
            run(model)
    assert replayed.layers[0].num_tokens == 2 * len(ids[0])


def test_a_trace_of_another_model_is_refused():
    model = BY_NAME["qwen2_moe"].model()
    _, ids = chosen(model)
    for wrong, told in (
        (ids[:-1], "give a trace of this model"),
        ([layer[:, :1] for layer in ids], "which needs"),
        ([layer + 100 for layer in ids], "names experts"),
        ([layer.float() for layer in ids], "integers"),
    ):
        with pytest.raises(InputError, match=told), replay(model, wrong):
            pass
    assert not any("C2R" in type(module).__name__ for module in model.modules())


def test_a_router_that_chooses_one_by_one_is_refused():
    model = BY_NAME["phimoe"].model()
    with pytest.raises(ModelError, match="one by one"), replay(model, []):
        pass
