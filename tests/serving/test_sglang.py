"""The plugin on SGLang's own top-k, on a CPU, its GPU kernels stubbed.

C2R_SGLANG_PYTHON names an interpreter that imports sglang 0.5.23 and c2r.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from c2r.adapters.digests import structure_digest, weights_digest
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.routing import make_policy
from c2r.serving.scoring import Scoring

PYTHON = os.environ.get("C2R_SGLANG_PYTHON")
PROGRAM = Path(__file__).with_name("sglang_program.py")
SOFTMAX = Scoring(function="softmax", renormalize=True)
SIGMOID = replace(SOFTMAX, function="sigmoid")
GROUPS = {"num_groups": 4, "num_chosen_groups": 2}
BIAS = torch.randn(16, generator=torch.Generator().manual_seed(7)) / 10
SCORINGS = {
    "softmax": replace(SOFTMAX, renormalize=False),
    "softmax renormalised": SOFTMAX,
    "softmax scaled": replace(SOFTMAX, scaling_factor=2.5),
    "grouped": replace(SOFTMAX, renormalize=False, **GROUPS),
    "grouped scaled": replace(SOFTMAX, scaling_factor=2.5, **GROUPS),
    "sigmoid": SIGMOID,
    "biased": replace(SIGMOID, bias=BIAS),
    "biased grouped": replace(SIGMOID, bias=BIAS, scaling_factor=2.5, **GROUPS),
    "biased grouped, scaled later": replace(SIGMOID, bias=BIAS, **GROUPS),
}

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="C2R_SGLANG_PYTHON names no environment"),
]


def layer_plan(policy, strength):
    return LayerPlan(
        name="model.layers.3.mlp.gate",
        num_experts=16,
        top_k=4,
        policy=policy,
        strength=strength,
        partners=np.empty((16, 0), dtype=np.int64),
        placement=np.arange(16) % 4,
    )


LAYERS = {"top_k": layer_plan("top_k", 0.0), "priced": layer_plan("priced", 0.2)}
ROUTER = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
MODEL = {
    "structure": structure_digest("qwen3_moe", [("model.layers.3.mlp.gate", 16, 4)]),
    "weights": weights_digest([("model.layers.3.mlp.gate", {"weight": ROUTER})]),
}
LOGITS = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=LAYERS)
def answers(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sglang")
    np.save(folder / "logits.npy", LOGITS.numpy())
    layer = LAYERS[request.param]
    np.save(folder / "router.npy", ROUTER.numpy())
    plan = Plan(
        layers=(layer,),
        topology=ClusterTopology(num_ranks=4),
        provenance={"model_fingerprint": MODEL},
    )
    plan.save(folder / "plan.safetensors")
    done = subprocess.run(
        [PYTHON, PROGRAM, folder / "logits.npy", folder / "router.npy"],
        env={
            **os.environ,
            "C2R_PLAN": str(folder / "plan.safetensors"),
            "TORCHDYNAMO_DISABLE": "1",  # compiling is minutes, and not what is tested
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return layer, json.loads(done.stdout.splitlines()[-1])


def dense(weights, ids):
    ids = torch.as_tensor(ids).long()
    return torch.zeros(LOGITS.shape).scatter_(1, ids, torch.as_tensor(weights))


@pytest.mark.parametrize("name", SCORINGS)
def test_sglang_chooses_and_weighs_as_the_policy_does(answers, name):
    layer, document = answers
    scoring = SCORINGS[name]
    expected = scoring.route(LOGITS, 4, make_policy(layer, scoring.score_kind))
    found = dense(*document["constrained"][name])
    torch.testing.assert_close(found, dense(*expected), atol=1e-6, rtol=1e-5)
    plain = dense(*document["plain"][name])
    if layer.policy == "top_k":
        torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)
    else:
        assert ((found > 0) != (plain > 0)).any(), "the plan changes nothing here"


def test_a_draft_model_is_left_as_it_is(answers):
    assert answers[1]["draft"]


def test_a_model_with_all_layers_bound_is_served(answers):
    assert answers[1]["bound"] == "nothing"


def test_a_model_with_the_router_weights_of_the_plan_is_served(answers):
    assert answers[1]["loaded"] == "nothing"
    assert answers[1]["loaded again"] == "nothing"  # a trainer sends new weights


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("another layer", "has no layer 5"),
        ("another k", "is for k = 4 in layer 3, the model has k = 2"),
        ("other experts", "is for 16 experts in layer 3, the model has 8"),
        ("a function of the model", "by custom_routing_function"),
        ("an unknown score", "by scoring_func=sqrtsoftplus"),
        ("a runner that routes", "TRITON_KERNEL"),
        ("a bias for each token", "a bias for every token"),
        ("a layer that is not bound", "SGLang routes 1 of the 1 layers"),
        ("other router weights", "was made for router weights"),
        ("a plan that is not there", "names a plan that cannot be found"),
    ],
)
def test_what_is_not_reached_is_refused(answers, what, told):
    assert told in answers[1]["refused"][what]
