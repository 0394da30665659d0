import gc
import weakref

import pytest
import torch

from c2r.adapters.huggingface import (
    apply,
    capture,
    find_sites,
    fingerprint,
    profile,
    remove,
    traces,
)
from c2r.errors import InputError, RoutingError
from c2r.traces import ScoreKind
from tests.adapters.huggingface.checks import run, small_plan, token_ids
from tests.adapters.huggingface.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}
MASK = torch.ones(2, 24, dtype=torch.int64)
MASK[0, :7] = 0
MASK[1, :2] = 0


@pytest.mark.parametrize("is_constrained", [False, True])
@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3 (groups)", "zaya", "phimoe", "dbrx"])
def test_padding_is_left_out(name: str, is_constrained: bool) -> None:
    model = BY_NAME[name].model()
    if is_constrained:
        apply(model, small_plan(find_sites(model)))
    with capture(model) as recorder, torch.no_grad():
        model(input_ids=token_ids(), attention_mask=MASK, use_cache=False)
        masked = recorder.take()
        model(token_ids(), MASK, use_cache=False)
        positional = recorder.take()
        model(input_ids=token_ids(), attention_mask=torch.ones_like(MASK), use_cache=False)
        full = recorder.take()
    for layer, other, whole in zip(masked.layers, positional.layers, full.layers, strict=True):
        assert layer.num_tokens == int(MASK.sum()) and whole.num_tokens == MASK.numel()
        assert torch.equal(layer.expert_ids, other.expert_ids)
        assert layer.scores.shape[0] == layer.num_tokens
        assert layer.weights is None or layer.weights.shape == layer.expert_ids.shape


def test_a_cached_forward_uses_the_end_of_the_mask() -> None:
    model = BY_NAME["qwen2_moe"].model()
    with capture(model) as recorder, torch.no_grad():
        start = model(input_ids=token_ids(), attention_mask=MASK, use_cache=True)
        mask = torch.cat([MASK, torch.tensor([[1], [0]])], dim=1)
        cache = start.past_key_values
        model(input_ids=token_ids()[:, :1], attention_mask=mask, past_key_values=cache)
        assert recorder.take().layers[0].num_tokens == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen2_moe", ScoreKind.PROBABILITIES),
        ("gpt_oss", ScoreKind.LOGITS),
        ("deepseek_v3", ScoreKind.GATES),
        ("ernie4_5_moe", ScoreKind.PROBABILITIES),
        ("cohere2_moe", ScoreKind.LOGITS),
        ("kolibri1", ScoreKind.LOGITS),
        ("deepseek_v4", ScoreKind.GATES),
        ("phimoe", ScoreKind.LOGITS),
    ],
)
def test_score_kinds(name: str, kind: ScoreKind) -> None:
    assert {site.score_kind for site in find_sites(BY_NAME[name].model())} == {kind}


def test_apply_and_remove_inside_a_capture() -> None:
    model = BY_NAME["olmoe"].model()
    plan = small_plan(find_sites(model))
    with capture(model) as recorder:
        run(model)
        free = recorder.take()
        apply(model, plan)
        run(model)
        bound = recorder.take()
        remove(model)
        run(model)
        again = recorder.take()
    assert not torch.equal(free.layers[0].expert_ids, bound.layers[0].expert_ids)
    assert torch.equal(free.layers[0].expert_ids, again.layers[0].expert_ids)
    assert "_c2r_installation" not in vars(model)


def test_only_the_last_forward_is_held() -> None:
    model = BY_NAME["olmoe"].model()
    with capture(model) as recorder, torch.no_grad():
        run(model)
        scores = weakref.ref(recorder.take().layers[0].scores)
        gc.collect()
        assert scores() is None
        run(model, token_ids(1))
        run(model, token_ids(2))
        second = recorder.take()
        run(model, token_ids(2))
        assert torch.equal(recorder.take().layers[0].scores, second.layers[0].scores)
        with pytest.raises(RoutingError, match="run the model once"):
            recorder.take()


def test_a_second_capture_is_refused() -> None:
    model = BY_NAME["olmoe"].model()
    with capture(model), pytest.raises(InputError, match="leave the other"), capture(model):
        pass


def test_a_mask_that_hides_the_padding_is_refused() -> None:
    model = BY_NAME["olmoe"].model()
    with capture(model) as recorder, torch.no_grad():
        model(input_ids=token_ids(), attention_mask=torch.zeros(2, 1, 24, 24))
        with pytest.raises(RoutingError, match=r"\[2, 1, 24, 24\].*give \[batch, tokens\]"):
            recorder.take()


def test_profile_counts_tokens_and_leaves_the_model_alone() -> None:
    model = BY_NAME["qwen2_moe"].model().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    batches = [{"input_ids": token_ids(i), "attention_mask": MASK, "labels": MASK} for i in (1, 2)]
    counted: list[int] = []
    found = profile(model, iter(batches), on_batch=counted.append)
    assert counted == [39, 78]
    assert (found.num_tokens, found.num_experts, found.top_k) == (78, 8, 3)
    assert [layer.name for layer in found.layers] == [site.name for site in find_sites(model)]
    assert found.layers[0].load.sum() == 78 * 3
    assert found.provenance["model_fingerprint"] == fingerprint(model, find_sites(model))
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_traces_leave_gradients_on_and_modes_restored_when_closed() -> None:
    model = BY_NAME["olmoe"].model().train()
    stream = traces(model, [{"input_ids": token_ids()}] * 3)
    next(stream)
    assert torch.is_grad_enabled()
    stream.close()
    assert model.training
    assert "_c2r_installation" not in vars(model)


def test_bad_batches() -> None:
    model = BY_NAME["olmoe"].model()
    with pytest.raises(InputError, match="must have input_ids"):
        profile(model, [{"labels": token_ids()}])
    with pytest.raises(InputError, match="no batches"):
        profile(model, [])
