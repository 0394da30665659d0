"""A model's routers are looked for once: what is found is carried until the model changes."""

import copy
import gc
import io
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from c2r.adapters.huggingface import (
    RouterSpec,
    apply,
    capture,
    describe_model,
    enforce,
    find_sites,
    load_model,
    prepare,
    profile,
    register_router,
    remove,
    save_pretrained,
)
from c2r.adapters.huggingface.folders import load_weights
from c2r.adapters.huggingface.routers import discovery, registry
from c2r.adapters.huggingface.taps import install
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import ModelError, PlanMismatchError
from c2r.measuring import measure
from c2r.planning import make_plan, with_policy
from c2r.results import SweepPoint
from c2r.sweeps import RunningSweep, measure_sensitivity
from tests.adapters.huggingface.checks import random_plan, run, small_plan
from tests.adapters.huggingface.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


def batches(num_rows=2, seq_len=48, file=0):
    content = heldout_files()[file].read_bytes()[: num_rows * seq_len]
    ids = torch.tensor(list(content)).view(1, num_rows, seq_len)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]


@pytest.fixture
def model():
    return load_weights(tiny_folder(), torch.float32)


@pytest.fixture(scope="module")
def calibrated():
    return profile(load_weights(tiny_folder(), torch.float32), batches(16, file=1))


@pytest.fixture(scope="module")
def placed(calibrated):
    return make_plan(calibrated, num_ranks=4, policy="top_k")


@pytest.fixture
def plan(calibrated, placed):
    return with_policy(placed, calibrated, "budgeted", 0.1)


@pytest.fixture
def probes(monkeypatch):
    """The models that were probed, one entry a probe."""
    probed = []
    probe = discovery.probe

    def counting(model):
        probed.append(model)
        return probe(model)

    monkeypatch.setattr(discovery, "probe", counting)
    return probed


def test_apply_probes_once(model, plan, probes):
    apply(model, plan)
    assert len(probes) == 1


def test_load_and_apply_probe_once(plan, probes):
    model = load_model(tiny_folder(), torch.float32)
    apply(model, plan)
    remove(model)
    apply(model, plan)
    assert len(probes) == 1


def test_a_profile_probes_once(model, probes):
    profile(model, batches())
    assert len(probes) == 1


def test_measuring_a_plan_probes_once(model, plan, probes):
    measure(model, batches(), plan)
    assert len(probes) == 1


def test_preparing_plans_probes_once_and_taps_nothing(model, plan, probes, monkeypatch):
    monkeypatch.setattr(install, "install", lambda *_: pytest.fail("tapped"))
    prepared = [prepare(model, plan) for _ in range(5)]
    assert len(probes) == 1
    assert all(one.sites[0].module is model.get_submodule(one.sites[0].name) for one in prepared)


def test_a_plan_that_drops_is_checked_on_the_tapped_model(model, calibrated, placed, probes):
    names = [site.name for site in find_sites(model)]
    seen = []
    handle = model.register_forward_hook(
        lambda *_: seen.append({type(model.get_submodule(name)).__name__ for name in names})
    )
    prepare(model, with_policy(placed, calibrated, "pruned", 0.2))
    handle.remove()
    ((tapped,),) = seen
    assert tapped == f"C2R{type(model.get_submodule(names[0])).__name__}"
    assert len(probes) == 1


def test_a_sweep_of_thirty_points_probes_once(model, calibrated, placed, probes):
    points = [SweepPoint(policy="budgeted", strength=0.01 * (1 + i)) for i in range(30)]
    for _ in RunningSweep.of(placed, calibrated, points).run(model, batches()):
        pass
    assert len(probes) == 1


@pytest.mark.parametrize("num_strengths", [1, 4])
def test_a_sensitivity_run_of_any_size_probes_once(
    model, calibrated, placed, probes, num_strengths
):
    plans = [with_policy(placed, calibrated, "budgeted", 0.1 * i) for i in range(num_strengths)]
    measure_sensitivity(model, batches(), plans)
    assert len(probes) == 1


def test_what_was_prepared_is_enforced_without_looking(model, plan, probes, monkeypatch):
    prepared = prepare(model, plan)
    monkeypatch.setattr(install, "find_sites", lambda _: pytest.fail("looked"))
    enforce(model, prepared)
    assert [type(site.module).__name__[:3] for site in prepared.sites] == ["C2R"] * 4


def test_a_plan_prepared_for_another_model_is_refused(model, plan):
    twin = load_weights(tiny_folder(), torch.float32)
    prepared = prepare(twin, plan)
    for tapped in (None, plan):
        if tapped is not None:
            apply(model, tapped)
        with pytest.raises(PlanMismatchError, match="prepare it again, for this model"):
            enforce(model, prepared)
    assert "_c2r_installation" not in vars(twin)


def test_a_router_that_was_replaced_needs_a_new_preparation():
    model = BY_NAME["mixtral"].model()
    prepared = prepare(model, random_plan(find_sites(model)))
    layer = model.model.layers[1].mlp
    layer.gate = copy.deepcopy(layer.gate)
    with pytest.raises(PlanMismatchError, match="other routers"):
        enforce(model, prepared)
    enforce(model, prepare(model, prepared.plan))
    assert type(layer.gate).__name__.startswith("C2R")


def _replace_router(model):
    layer = model.model.layers[0].mlp
    layer.gate = copy.deepcopy(layer.gate)


def _fewer_layers(model):
    model.model.layers = model.model.layers[:1]


def _lower_k(model):
    for layer in model.model.layers:
        layer.mlp.gate.top_k = 2


def _forward_of_its_own(model):
    gate = model.model.layers[0].mlp.gate
    gate.forward = gate.forward


def _another_class(model):
    gate = model.model.layers[0].mlp.gate
    gate.__class__ = type("OtherRouter", (type(gate),), {})


@pytest.mark.parametrize(
    "change", [_replace_router, _fewer_layers, _lower_k, _forward_of_its_own, _another_class]
)
def test_a_model_that_changed_is_probed_anew(change, probes):
    model = BY_NAME["qwen2_moe"].model()
    find_sites(model)
    change(model)
    found = find_sites(model)
    assert len(probes) == 2
    assert [site.top_k for site in found] == [layer.mlp.gate.top_k for layer in model.model.layers]
    assert all(model.get_submodule(site.name) is site.module for site in found)


def test_a_change_of_weights_or_mode_is_none_of_the_routers(probes):
    model = BY_NAME["qwen2_moe"].model()
    find_sites(model)
    model.train().to(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.zero_()
    find_sites(model)
    assert len(probes) == 1


def test_registering_a_router_makes_the_model_be_looked_at_again(probes, monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    model = BY_NAME["qwen2_moe"].model()
    (first, _) = find_sites(model)
    spec = RouterSpec(
        class_name=type(first.module).__name__, num_experts="num_experts", top_k="top_k"
    )
    register_router(replace(spec, path_suffix="layers.1.mlp.gate"))
    assert [site.name for site in find_sites(model)] == ["model.layers.1.mlp.gate"]
    register_router(replace(spec, path_suffix="layers.0.mlp.gate"))
    assert len(find_sites(model)) == 2
    assert len(probes) == 1


def test_what_was_found_is_in_no_copy_and_no_file(model, plan, probes, tmp_path):
    keys, attributes = list(model.state_dict()), [sorted(vars(m)) for m in model.modules()]
    find_sites(model)
    assert list(model.state_dict()) == keys
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    twin = copy.deepcopy(model)
    assert all(twin.get_submodule(site.name) is site.module for site in find_sites(twin))
    assert len(probes) == 2, "a copy is another model"
    file = io.BytesIO()
    torch.save(model, file)
    assert b"c2r.adapters" not in file.getvalue()
    apply(model, plan)
    save_pretrained(model, tmp_path / "saved")
    assert b"_c2r" not in (tmp_path / "saved" / "config.json").read_bytes()


def test_a_copy_of_a_constrained_model_knows_its_own_routers(model, plan, probes):
    apply(model, plan)
    twin = copy.deepcopy(model)
    assert all(twin.get_submodule(site.name) is site.module for site in find_sites(twin))
    remove(twin)
    apply(twin, plan)
    assert len(probes) == 2


def test_a_model_is_not_kept_alive():
    model = BY_NAME["mixtral"].model()
    model.model.layers[0].mlp.gate.register_forward_hook(lambda *_, around=model: None)
    find_sites(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_compiled_model_is_the_model_that_it_was_made_of(probes):
    model = BY_NAME["mixtral"].model()
    expected = [site.name for site in find_sites(model)]
    plan = small_plan(find_sites(model))
    compiled = torch.compile(model, backend="eager")
    assert [site.name for site in find_sites(compiled)] == expected
    assert describe_model(compiled) == describe_model(model)
    apply(compiled, plan)
    constrained = run(model)
    with capture(compiled) as recorder, torch.no_grad():
        run(model)
        assert recorder.take().layers[0].num_tokens == 48
    remove(compiled)
    apply(model, plan)
    assert torch.equal(run(model), constrained)
    remove(model)
    assert len(probes) == 1


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_a_model_around_a_constrained_one_is_told_so(model, plan):
    apply(model, plan)
    for door in (find_sites, remove, lambda outer: profile(outer, batches())):
        with pytest.raises(ModelError, match=r"through another model.*give that model"):
            door(Wrapper(model))
