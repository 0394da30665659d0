"""Which plan an engine's model runs under."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import c2r
from c2r.errors import InputError, ModelError, PlanMismatchError
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.plans.model_folder import PLAN_FILE, plan_path, read_plan, save_plan
from c2r.serving.binding import (
    VARIABLE,
    check_bound,
    check_family,
    check_weights,
    layer_number,
    layers_by_number,
    plan_of,
    router_tensors,
)
from tests.serving import families


def plan(*names, policy="top_k"):
    layers = tuple(
        LayerPlan(
            name=name,
            num_experts=4,
            top_k=2,
            policy=policy,
            strength=0.0,
            partners=np.empty((4, 0), dtype=np.int64),
            placement=np.array([0, 0, 1, 1]),
        )
        for name in names
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=2))


PLAN = plan("model.layers.1.mlp.gate", "model.layers.2.mlp.gate")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def folder(tmp_path):
    save_plan(PLAN, tmp_path)
    config = {"c2r": {"plan_fingerprint": PLAN.fingerprint}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_folder_runs_under_its_plan(folder):
    assert plan_of(str(folder), is_named=True).fingerprint == PLAN.fingerprint


def test_a_folder_without_a_plan_runs_as_it_is(tmp_path):
    assert plan_of(str(tmp_path), is_named=False) is None
    assert plan_of("no-such/model", is_named=False) is None


def test_a_plan_that_the_config_names_must_be_there(folder):
    (folder / PLAN_FILE).unlink()
    with pytest.raises(InputError, match=f"names plan {PLAN.fingerprint}, but there is no"):
        plan_of(str(folder), is_named=True)
    with pytest.raises(InputError, match=VARIABLE):
        plan_of("no-such/model", is_named=True)


def test_a_plan_that_the_config_does_not_name_is_refused(folder):
    save_plan(replace(PLAN, topology=ClusterTopology(num_ranks=4)), folder)
    with pytest.raises(PlanMismatchError, match="write the folder again"):
        plan_of(str(folder), is_named=True)


def test_the_variable_names_a_plan_for_a_model_without_one(tmp_path, monkeypatch):
    PLAN.save(tmp_path / "plan.safetensors")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "plan.safetensors"))
    assert plan_of("no-such/model", is_named=False).fingerprint == PLAN.fingerprint


def test_the_variable_and_the_folder_must_agree(folder, monkeypatch):
    other = plan("model.layers.1.mlp.gate")
    other.save(folder / "other.safetensors")
    monkeypatch.setenv(VARIABLE, str(folder / "other.safetensors"))
    with pytest.raises(InputError, match=f"{other.fingerprint}.*{PLAN.fingerprint}"):
        plan_of(str(folder), is_named=True)


def test_a_plan_at_the_top_of_an_older_folder_is_still_read(folder):
    (folder / PLAN_FILE).rename(folder / "c2r_plan.safetensors")
    assert plan_path(folder).name == "c2r_plan.safetensors"
    assert read_plan(folder).fingerprint == PLAN.fingerprint


def test_layers_are_found_by_their_number():
    assert layer_number("language_model.model.layers.12.mlp.experts") == 12
    assert layer_number("experts") is None
    assert sorted(layers_by_number(PLAN)) == [1, 2]


@pytest.mark.parametrize("names", [("", ""), ("a.1.gate", "b.1.gate")])
def test_a_plan_that_does_not_tell_its_layers_apart_is_refused(names):
    with pytest.raises(PlanMismatchError, match="which layers its 2 routers"):
        layers_by_number(plan(*names))


def test_every_layer_of_the_plan_must_be_bound():
    check_bound(PLAN, {1, 2}, "vLLM", range(4))
    check_bound(PLAN, {2}, "vLLM", range(2, 4))  # another process has the rest
    with pytest.raises(ModelError, match=r"routes 1 of the 2 layers .* first is layer 1\b"):
        check_bound(PLAN, {2}, "vLLM", range(4))


def plan_for(model):
    ids = {"input_ids": torch.arange(3, 67)[None]}
    return c2r.make_plan(c2r.profile(model, [ids]), num_ranks=4)


def routers_of(model):
    return {n: router_tensors(model, f"model.layers.{n}.mlp.experts") for n in range(2)}


def test_a_plan_for_another_family_is_refused():
    made = plan_for(families.make("mixtral"))
    check_family(made, ("mixtral", "mixtral"))
    check_family(PLAN, ("mixtral", "mixtral"))  # not of a model: nothing is known
    with pytest.raises(PlanMismatchError, match="which qwen3_moe is not"):
        check_family(made, ("qwen3_moe", "qwen3_moe"))


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_a_plan_for_other_router_weights_is_refused(name):
    model = families.make(name)
    made = plan_for(model)
    assert check_weights(made, [name], routers_of(model)) is None
    assert check_weights(made, [name], routers_of(model.bfloat16())) is None
    model.model.layers[1].mlp.get_parameter(
        "router.weight" if name == "gpt_oss" else "gate.weight"
    ).data[3, 5] += 1
    with pytest.raises(PlanMismatchError, match=rf"plan {made.fingerprint} was made for router w"):
        check_weights(made, [name], routers_of(model))


def test_what_keeps_router_weights_from_being_compared_is_told():
    model = families.make("mixtral")
    made, routers = plan_for(model), routers_of(model)
    assert "does not tell them" in check_weights(PLAN, ["mixtral"], routers)
    assert "how jetmoe names them" in check_weights(made, ["jetmoe", "jetmoe"], routers)
    assert "not hold the router of layer 1" in check_weights(made, ["mixtral"], {0: routers[0]})
    assert "not hold" in check_weights(made, ["mixtral"], {**routers, 1: {}})
    halved = routers_of(model.half())
    assert "loaded as torch.float16" in check_weights(made, ["mixtral"], halved)
