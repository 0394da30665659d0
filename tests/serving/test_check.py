"""An engine's answer beside that of transformers, by hand and from the real vLLM."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

import c2r
from c2r.cli import run_command
from c2r.errors import InputError, ModelError
from c2r.plans import Plan
from c2r.plans.model_folder import PLAN_FILE
from c2r.serving.check import Answer, answer_of_vllm, compare
from tests.serving import families

PYTHON = os.environ.get("C2R_VLLM_PYTHON")
with_vllm = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="scripts/engines makes vLLM's environment"),
]
IDS = torch.randint(3, 256, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return families.make("mixtral")


@pytest.fixture(scope="module")
def answer(model):
    """What an engine answers that does as transformers does."""
    with torch.no_grad(), c2r.capture(model) as recorder:
        logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        trace = recorder.take()
    log_probs = logits.log_softmax(-1)[:, :-1].gather(-1, IDS[:, 1:, None]).squeeze(-1)
    return Answer(
        log_probs=log_probs.flatten().numpy(),
        expert_ids={n: layer.expert_ids.numpy() for n, layer in enumerate(trace.layers)},
        constrained=frozenset({0, 1}),
    )


def with_others(answer, layer, num_tokens):
    """The answer with one expert of some tokens of a layer exchanged for one that is not theirs."""
    ids = answer.expert_ids[layer].copy()
    for row in ids[:num_tokens]:
        row[1] = next(expert for expert in range(16) if expert not in row)
    return replace(answer, expert_ids={**answer.expert_ids, layer: ids}, log_probs=None)


def test_equal_answers_under_the_plan_agree(model, answer):
    agreement = compare(model, IDS, answer)
    assert agreement.holds(1e-5)
    assert [(layer.other_sets, layer.tied_sets) for layer in agreement.layers] == [(0.0, 0.0)] * 2


def test_a_layer_without_the_plan_does_not_agree(model, answer):
    seen = compare(model, IDS, replace(answer, constrained=frozenset({1})))
    assert [layer.under_plan for layer in seen.layers] == [False, True]
    assert not seen.holds(1.0, 1.0)


def test_other_experts_are_counted_by_token_in_their_own_layer(model, answer):
    agreement = compare(model, IDS, with_others(answer, 0, 16))
    first, second = agreement.layers
    # The second layer got the input that it would have had in the engine.
    assert first.other_sets == 0.25
    assert second.other_sets > 0  # the answer tells its choice for the input it had before
    assert not agreement.holds(1.0, 0.2)
    agreement = compare(model, IDS, with_others(answer, 1, 16))
    assert [layer.other_sets for layer in agreement.layers] == [0.0, 0.25]
    assert agreement.holds(1.0, 0.25)


def test_log_probabilities_differ_by_the_largest_of_all_tokens(model, answer):
    log_probs = answer.log_probs.copy()
    log_probs[7] += 0.5
    agreement = compare(model, IDS, replace(answer, log_probs=log_probs))
    assert agreement.log_prob_difference == pytest.approx(0.5, abs=1e-4)
    assert agreement.holds(0.51)
    assert not agreement.holds(0.4)


def test_another_number_of_tokens_is_not_compared(model, answer):
    fewer = {number: ids[:-1] for number, ids in answer.expert_ids.items()}
    with pytest.raises(InputError, match=r"the choice of 63 tokens in layer 0, of 64"):
        compare(model, IDS, replace(answer, expert_ids=fewer))
    with pytest.raises(InputError, match=r"the choice of 0 tokens in layer 1"):
        compare(model, IDS, replace(answer, expert_ids={0: answer.expert_ids[0]}))


def test_a_python_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be started"):
        answer_of_vllm(tmp_path / "python", "tiny", IDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("constrained")
    profile, plan, out = (str(made / name) for name in ("profile", "plan", "out"))
    for command in (
        ["profile", "tiny", "--tokens", "2000", "--out", profile],
        ["plan", profile, "--ranks", "4", "--out", plan],
        ["apply", "tiny", "--plan", plan, "--out", out],
    ):
        assert run_command(command) == 0
    return made / "out"


class TestInVllm:
    pytestmark = with_vllm

    def test_the_embedded_model_agrees(self, folder, capsys):
        status = run_command(["serve-check", str(folder), "--python", PYTHON, "--json"])
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert status == 0
        assert document["agrees"]
        assert [layer["under_plan"] for layer in document["layers"]] == [True] * 4

    def test_a_vllm_without_the_plugin_is_found_out(self, folder, capsys, monkeypatch):
        monkeypatch.setenv("VLLM_PLUGINS", "none")
        assert run_command(["serve-check", str(folder), "--python", PYTHON]) == 1
        assert "DIFFERS" in capsys.readouterr().out

    def test_a_folder_without_its_plan_is_refused(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "model")
        (tmp_path / "model" / PLAN_FILE).unlink()
        with pytest.raises(ModelError, match=r"names plan .*, but there is no"):
            answer_of_vllm(PYTHON, tmp_path / "model", IDS)

    @pytest.mark.parametrize(("kept", "told"), [(2, "has no layer for"), (4, "with k = ")])
    def test_a_plan_for_another_model_is_refused(self, folder, tmp_path, monkeypatch, kept, told):
        shutil.copytree(folder, tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        del config["c2r"]
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        plan = Plan.load(tmp_path / "model" / PLAN_FILE)
        shutil.rmtree(tmp_path / "model" / "c2r")
        layers = tuple(
            replace(layer, top_k=layer.top_k - 1) if kept == 4 else layer
            for layer in plan.layers[:kept]
        )
        replace(plan, layers=layers).save(tmp_path / "other.safetensors")
        monkeypatch.setenv("C2R_PLAN", str(tmp_path / "other.safetensors"))
        with pytest.raises(ModelError, match=told):
            answer_of_vllm(PYTHON, tmp_path / "model", IDS)
