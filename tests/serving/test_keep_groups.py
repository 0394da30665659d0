"""The road of a group-limited model to an engine that loads no placement: plan, permute, serve."""

import os

import numpy as np
import pytest
import torch

import c2r
from c2r.adapters.huggingface import permute_checkpoint
from c2r.cli import run_command
from c2r.errors import PlanError
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile
from c2r.serving.check import answer_of_vllm, compare
from tests.serving import families

PYTHON = os.environ.get("C2R_VLLM_PYTHON")
IDS = torch.randint(3, 256, (2, 64), generator=torch.Generator().manual_seed(1))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    model = families.make("deepseek_v3")
    model.save_pretrained(folder / "model")
    c2r.profile(model, [BATCH]).save(folder / "profile")
    plan = ["plan", str(folder / "profile"), "--ranks", "8", "--objective", "sets"]
    plan += ["--policy", "priced=0.2"]
    assert run_command([*plan, "--keep-groups", "--out", str(folder / "plan")]) == 0
    assert run_command([*plan, "--out", str(folder / "free")]) == 0
    permute_checkpoint(folder / "model", Plan.load(folder / "plan"), folder / "permuted")
    return folder, model


def logits(model):
    with torch.no_grad():
        return model(**BATCH).logits


def test_without_the_option_the_plan_splits_groups(made):
    folder, _ = made
    with pytest.raises(PlanError, match="splits groups"):
        permute_checkpoint(folder / "model", Plan.load(folder / "free"), folder / "refused")


def test_the_permuted_model_answers_as_the_original(made):
    folder, model = made
    placements = [layer.placement for layer in Plan.load(folder / "plan").layers]
    assert (np.stack(placements) != np.arange(16) // 2).any(), "the plan changes no order"
    from transformers import AutoModelForCausalLM

    permuted = AutoModelForCausalLM.from_pretrained(folder / "permuted")
    torch.testing.assert_close(logits(permuted), logits(model), atol=1e-6, rtol=1e-5)


def test_and_under_the_plan_as_the_original_under_the_plan(made):
    folder, model = made
    c2r.apply(model, Plan.load(folder / "plan"))
    expected = logits(model)
    c2r.remove(model)
    assert (expected - logits(model)).abs().max() > 1e-3, "the plan changes nothing here"
    permuted = c2r.from_pretrained(folder / "permuted")
    torch.testing.assert_close(logits(permuted), expected, atol=1e-6, rtol=1e-5)


def test_a_profile_that_does_not_tell_the_groups_is_refused(made, tmp_path, capsys):
    profile = CollaborationProfile.load(made[0] / "profile")
    assert profile.provenance["request"]["num_groups"] == 4
    CollaborationProfile(layers=profile.layers).save(tmp_path / "profile")
    command = ["plan", str(tmp_path / "profile"), "--ranks", "8", "--keep-groups", "--json"]
    assert run_command(command) == 2
    assert "does not say how many groups" in capsys.readouterr().err


@pytest.mark.engines
@pytest.mark.skipif(PYTHON is None, reason="scripts/engines makes vLLM's environment")
def test_vllm_serves_the_permuted_model_under_the_plan(made):
    permuted = c2r.from_pretrained(made[0] / "permuted")
    agreement = compare(permuted, IDS, answer_of_vllm(PYTHON, made[0] / "permuted", IDS))
    assert agreement.holds(1e-4), agreement
