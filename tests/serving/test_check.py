"""An engine's answer beside that of transformers, by hand and from the real vLLM."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from c2r.cli import run_command
from c2r.errors import InputError, ModelError
from c2r.plans import Plan
from c2r.plans.model_folder import PLAN_FILE
from c2r.serving.check import Answer, answer_of_vllm, compare

PYTHON = os.environ.get("C2R_VLLM_PYTHON")
with_vllm = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="scripts/engines makes vLLM's environment"),
]
IDS = torch.randint(3, 256, (1, 32), generator=torch.Generator().manual_seed(1))
HERE = Answer(
    log_probs=np.array([[-1.0, -2.0]]),
    expert_ids={1: np.array([[0, 1], [0, 2], [1, 3]])},
    constrained=frozenset({1}),
)


def test_equal_answers_under_the_plan_agree():
    assert compare(HERE, HERE).holds(0.0)


def test_a_layer_without_the_plan_does_not_agree():
    assert not compare(HERE, replace(HERE, constrained=frozenset())).holds(1.0, 1.0)


def test_other_experts_are_counted_by_token():
    other = replace(HERE, expert_ids={1: np.array([[0, 1], [0, 3], [1, 3]])})
    agreement = compare(HERE, other)
    assert agreement.layers[0].other_sets == pytest.approx(1 / 3)
    assert not agreement.holds(0.0, 0.3)
    assert agreement.holds(0.0, 0.4)


def test_log_probabilities_differ_by_the_largest_of_all_tokens():
    agreement = compare(HERE, replace(HERE, log_probs=np.array([[-1.0, -2.5]])))
    assert agreement.log_prob_difference == 0.5
    assert agreement.holds(0.5)
    assert not agreement.holds(0.4)


def test_another_number_of_tokens_is_not_compared():
    with pytest.raises(ModelError, match=r"layer 1 routed \[3, 2\] here and \[2, 2\]"):
        compare(HERE, replace(HERE, expert_ids={1: np.array([[0, 1], [0, 2]])}))


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
