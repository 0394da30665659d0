"""Models under their plans inside the real vLLM, against transformers under the same plans.

vLLM lives in an environment of its own, which `scripts/engines` makes and C2R_VLLM_PYTHON names.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import c2r
import c2r.serving
from c2r.adapters.engines import ImportFormat, import_traces
from c2r.adapters.huggingface import load_model, read_model_layers
from c2r.assets import tiny_folder
from c2r.serving.check import compare
from c2r.serving.routed import read_routed
from c2r.traces import ProfileBuilder
from tests.serving import families

PYTHON = os.environ.get("C2R_VLLM_PYTHON")
PROGRAM = Path(c2r.serving.__file__).with_name("vllm_program.py")
NUM_SEQUENCES, SEQ_LEN = 2, 128
FINGERPRINT = "[0-9a-f]{16}"

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="scripts/engines makes vLLM's environment"),
]


def token_ids():
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(3, 256, (NUM_SEQUENCES, SEQ_LEN), generator=drawn)


def by_transformers(model):
    """Log-probabilities of the next tokens, and the sets that each layer chose."""
    ids = token_ids()
    with torch.no_grad(), c2r.capture(model) as recorder:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        trace = recorder.take()
    log_probs = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return log_probs.numpy(), [layer.expert_ids.sort(-1).values.numpy() for layer in trace.layers]


def constrain(model, folder):
    ids = token_ids()
    seen = c2r.profile(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    plan = c2r.make_plan(seen, num_ranks=4, policy="priced", strength=0.2)
    c2r.apply(model, plan)
    c2r.save_pretrained(model, folder)
    return plan


def with_other_routers(folder, other):
    """A copy of a constrained folder whose first layer's router has other weights."""
    shutil.copytree(folder, other)
    tensors = load_file(other / "model.safetensors")
    routers = [key for key in tensors if re.search(r"\.0\..*(gate|router).*weight$", key)]
    (router,) = (key for key in routers if "expert" not in key)
    tensors[router] = -tensors[router]
    save_file(tensors, other / "model.safetensors", {"format": "pt"})


def ask(jobs, folder, options=None, **environment):
    """Runs the program on all jobs in one process; gives what it prints."""
    np.save(folder / "ids.npy", token_ids().numpy())
    listed = [
        {"model": str(model), "ids": str(folder / "ids.npy"), "out": str(out), **(options or {})}
        for model, out in jobs
    ]
    (folder / "jobs.json").write_text(json.dumps(listed))
    done = subprocess.run(
        [PYTHON, "-P", PROGRAM, folder / "jobs.json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """By family: what transformers gives with and without the plan, and what vLLM gives."""
    folder = tmp_path_factory.mktemp("vllm")
    expected, jobs, plans = {}, [], {}
    for name in families.NAMES:
        model = families.make(name)
        model.save_pretrained(folder / f"{name}-plain")
        plain = by_transformers(model)
        plans[name] = constrain(model, folder / name)
        expected[name] = plain, by_transformers(model)
        jobs += [(folder / f"{name}-plain", folder / f"{name}-plain.npz")]
        jobs += [(folder / name, folder / f"{name}.npz")]
        with_other_routers(folder / name, folder / f"{name}-other")
        jobs += [(folder / f"{name}-other", folder / f"{name}-other.npz")]
    printed = ask(jobs, folder)
    return folder, expected, plans, printed


def found(folder, name):
    error = folder / f"{name}.npz.error"
    assert not error.exists(), error.read_text()
    return np.load(folder / f"{name}.npz")


@pytest.mark.parametrize("name", families.NAMES)
def test_a_plain_model_answers_as_in_transformers(answers, name):
    folder, expected, *_ = answers
    np.testing.assert_allclose(
        found(folder, f"{name}-plain")["log_probs"], expected[name][0][0], atol=1e-4
    )


@pytest.mark.parametrize("name", families.NAMES)
def test_a_constrained_model_chooses_and_answers_as_in_transformers(answers, name):
    folder, expected, plans, printed = answers
    result = found(folder, name)
    (plain, _), (log_probs, sets) = expected[name]
    assert np.abs(plain - log_probs).max() > 1e-3, "the plan changes nothing here"
    np.testing.assert_allclose(result["log_probs"], log_probs, atol=1e-4)
    for number, layer in enumerate(sets):
        assert (result[str(number)][: len(layer)] == layer).all()
    assert f"runs under plan {plans[name].fingerprint}" in printed


@pytest.mark.parametrize("name", families.NAMES)
def test_a_folder_with_other_router_weights_is_refused(answers, name):
    folder, *_, printed = answers
    assert "are not compared" not in printed
    error = (folder / f"{name}-other.npz.error").read_text()
    assert re.match(rf"PlanMismatchError: plan {FINGERPRINT} was made for router weights", error)


def test_a_plan_named_for_another_model_of_the_same_shape_is_refused(answers, tmp_path):
    folder, _, plans, _ = answers
    plans["qwen3_moe"].save(tmp_path / "plan.safetensors")
    named = {"C2R_PLAN": str(tmp_path / "plan.safetensors")}
    jobs = [(folder / "qwen3_moe-plain", tmp_path / "own.npz")]
    shutil.copytree(folder / "qwen3_moe-plain", tmp_path / "other")
    shutil.copy(folder / "qwen3_moe-other" / "model.safetensors", tmp_path / "other")
    jobs += [(tmp_path / "other", tmp_path / "other.npz")]
    printed = ask(jobs, tmp_path, **named)
    assert found(tmp_path, "own")["constrained"].tolist() == [0, 1], printed
    assert "was made for router weights" in (tmp_path / "other.npz.error").read_text()


def test_the_routed_experts_that_vllm_returns_are_imported_and_replayed(tmp_path):
    model = load_model(tiny_folder(), dtype=torch.float32)
    ids = torch.arange(3, 83).view(2, 40)
    seen = c2r.profile(model, [{"input_ids": ids}])
    c2r.apply(model, c2r.make_plan(seen, num_ranks=4, policy="priced", strength=0.1))
    c2r.save_pretrained(model, tmp_path / "model")
    np.save(tmp_path / "ids.npy", ids.numpy())
    files = [tmp_path / name for name in ("model", "ids.npy", "requests.npz")]
    program = Path(__file__).with_name("vllm_routed_program.py")
    done = subprocess.run(
        [PYTHON, "-P", program, *files], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    layers = read_model_layers(tmp_path / "model")
    sequences, answer = read_routed(tmp_path / "requests.npz", layers)
    assert [len(sequence) for sequence in sequences] == [47, 47]  # the last of 48 is not routed
    agreement = compare(model, sequences, answer)
    assert [layer.other_sets for layer in agreement.layers] == [0.0] * 4
    with np.load(tmp_path / "requests.npz") as requests:
        routed = {key: requests[key] for key in requests if key.endswith("routed_experts")}
    np.savez(tmp_path / "routed.npz", **routed)
    found = import_traces(ImportFormat.VLLM_ROUTED, [tmp_path / "routed.npz"], layers).profile
    builder = ProfileBuilder()
    with torch.no_grad(), c2r.capture(model) as recorder:
        for sequence in sequences:
            model(input_ids=sequence[None])
            builder.update(recorder.take())
    for layer, own in zip(found.layers, builder.build().layers, strict=True):
        assert layer.name == own.name and layer.num_tokens == 94
        assert (layer.coactivation == own.coactivation).all()


@pytest.fixture(scope="module")
def by_backend(answers):
    """The constrained models once more, in vLLM's transformers backend."""
    folder, *_ = answers
    jobs = [(folder / name, folder / f"{name}-backend.npz") for name in families.NAMES]
    ask(jobs, folder, {"model_impl": "transformers"})
    return folder


@pytest.mark.parametrize("name", families.NAMES)
def test_the_transformers_backend_is_reached_or_refused(answers, by_backend, name):
    error = by_backend / f"{name}-backend.npz.error"
    if error.exists():
        # By the router that was asked for, or, where none was (gpt-oss), once the model is loaded.
        assert "where c2r cannot choose; serve" in error.read_text()
        return
    log_probs, sets = answers[1][name][1]
    result = found(by_backend, f"{name}-backend")
    np.testing.assert_allclose(result["log_probs"], log_probs, atol=1e-4)
    for number, layer in enumerate(sets):
        assert (result[str(number)][: len(layer)] == layer).all()
