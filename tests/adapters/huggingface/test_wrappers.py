"""Models inside wrappers: the same figures and the same plan as of the model itself, either way."""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel

from c2r.adapters.huggingface import (
    applied_plan,
    apply,
    describe_model,
    find_sites,
    profile,
    remove,
)
from c2r.adapters.huggingface.models import plain_path
from c2r.errors import C2RError, ModelError
from c2r.measuring import measure
from tests.adapters.huggingface.checks import expert_loads, run, small_plan, token_ids
from tests.adapters.huggingface.families import FAMILIES
from tests.adapters.huggingface.independent import loads_of_rows, loss_of_rows
from tests.adapters.huggingface.test_errors_leave_no_trace import fingerprint_of
from tests.parallel.processes import run_checks

BY_NAME = {family.name: family for family in FAMILIES}
IDS = token_ids()
LORA = {"target_modules": ["q_proj", "v_proj"]}
ROUTER_NAMES = ("model.layers.0.mlp.gate", "model.layers.1.mlp.gate")


def fresh() -> Any:
    return BY_NAME["qwen3_moe"].model()


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def layers_compiled(model: Any) -> Any:
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = compiled(layer)
    return model


def adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(**LORA, lora_dropout=0.1))


def routers_copied(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(**LORA, modules_to_save=["gate"]))


def routers_adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(**LORA, target_parameters=["mlp.gate.weight"]))


def two_copies(model: Any) -> Any:
    both = routers_copied(model)
    both.add_adapter("other", LoraConfig(**LORA, modules_to_save=["gate"]))
    both.set_adapter("other")
    return both


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": DataParallel,
    "compiled and adapted": lambda model: compiled(adapted(model)),
    "adapted, then DataParallel": lambda model: DataParallel(routers_copied(model)),
    "adapted around compiled": lambda model: adapted(compiled(model)),
} | {
    entry.__name__: entry
    for entry in (compiled, compiled_in_place, layers_compiled, adapted, routers_copied,
                  routers_adapted, two_copies)
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """Of the model by itself: its plan, and what hooks count and lose without and with it."""
    model, rows = fresh(), IDS.tolist()
    found = {"plan": small_plan(find_sites(model)), "identity": describe_model(model)}
    found |= {"loads": loads_of_rows(model, rows), "loss": loss_of_rows(model, rows)}
    apply(model, found["plan"])
    return found | {"constrained": loss_of_rows(model, rows), "logits": run(model)}


@pytest.mark.parametrize("name", WRAPPERS)
def test_figures_and_names_are_those_of_the_model_itself(name: str, reference: Any) -> None:
    model = WRAPPERS[name](fresh()).eval()
    find_sites(model)
    before = fingerprint_of(model)
    found = profile(model, IDS)
    assert np.array_equal(expert_loads(found), reference["loads"])
    assert tuple(layer.name for layer in found.layers) == ROUTER_NAMES
    assert found.provenance["model_fingerprint"] == reference["identity"]["model_fingerprint"]
    measured = measure(model, IDS, reference["plan"])
    assert measured.loss == pytest.approx(reference["constrained"], rel=1e-6)
    assert measured.reference is not None
    assert measured.reference.loss == pytest.approx(reference["loss"], rel=1e-6)
    assert fingerprint_of(model) == before


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_plan_holds_whichever_came_first(name: str, reference: Any) -> None:
    first, last = fresh(), WRAPPERS[name](fresh()).eval()
    apply(first, reference["plan"])
    for model in (WRAPPERS[name](first).eval(), last):
        apply(last, reference["plan"])
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(run(model), reference["logits"])
        plan = applied_plan(model)
        assert plan is not None and plan.fingerprint == reference["plan"].fingerprint
        remove(model)
        assert np.array_equal(expert_loads(profile(model, IDS)), reference["loads"])
        assert not [m for m in model.modules() if type(m).__name__.startswith("C2R")]
        assert not [m for m in model.modules() if "_c2r_installation" in vars(m)]


def test_a_copy_of_a_router_is_followed_in_and_out_of_use(reference: Any) -> None:
    model = fresh()
    apply(model, reference["plan"])
    both = two_copies(model).eval()
    for layer in model.model.layers:  # the copies now choose otherwise
        for number, copied in enumerate(layer.mlp.gate.modules_to_save.values()):
            torch.manual_seed(number)
            copied.weight.data.normal_()
    for adapter in ("default", "other", "default"):
        both.set_adapter(adapter)
        expected = copy.deepcopy(both).merge_and_unload()
        remove(expected) if applied_plan(expected) else None
        apply(expected, reference["plan"], strict=False)
        torch.testing.assert_close(run(both), run(expected))
    with both.disable_adapter():
        torch.testing.assert_close(run(both), reference["logits"])
    remove(both)
    assert not [m for m in both.modules() if type(m).__name__.startswith("C2R")]


def test_a_constrained_model_is_pickled_inside_its_wrapper(reference: Any) -> None:
    model = fresh()
    apply(model, reference["plan"])
    both, file = routers_copied(model).eval(), io.BytesIO()
    run(both)
    torch.save(both, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    torch.testing.assert_close(run(again), reference["logits"])


@pytest.mark.parametrize("name", WRAPPERS)
def test_an_error_leaves_a_wrapped_model_as_it_was(name: str, reference: Any) -> None:
    model = WRAPPERS[name](fresh()).eval()
    find_sites(model)
    before = fingerprint_of(model)
    for door in (lambda: profile(model, [IDS, None]), lambda: measure(model, [IDS, "text"]),
                 lambda: measure(model, [IDS, IDS + 90], reference["plan"])):  # fmt: skip
        with pytest.raises(C2RError):
            door()
        assert fingerprint_of(model) == before


def test_learned_prompts_are_refused() -> None:
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(fresh(), settings)
    for door in (find_sites, lambda m: profile(m, IDS), lambda m: measure(m, IDS)):
        with pytest.raises(ModelError, match="learned"):
            door(model)


def test_weights_that_a_wrapper_hides_are_refused() -> None:
    model = fresh()
    outer = nn.Module()
    outer._fsdp_wrapped_module = model
    with pytest.raises(ModelError, match=r"FullyShardedDataParallel.*fully_shard"):
        find_sites(outer)


def test_names_without_wrappers() -> None:
    plain = "model.layers.0.mlp.gate"
    for path in (
        plain,
        f"module.{plain}",
        f"_orig_mod.{plain}",
        f"module._orig_mod.{plain}",
        f"base_model.model.{plain}",
        f"_orig_mod.base_model.model.{plain}",
        f"{plain}.modules_to_save.default",
        f"{plain}.base_layer.base_layer",
        f"{plain}.original_module",
        "model.layers.0._orig_mod.mlp.gate",
        "model.layers.0._checkpoint_wrapped_module.mlp.gate",
    ):
        assert plain_path(path) == plain
    assert plain_path("encoder.base_layer.gate") == "encoder.base_layer.gate"


def _sharded(_: Any, when: str) -> None:
    reference, model = fresh(), fresh()
    plan = small_plan(find_sites(reference))
    rows = IDS.tolist()
    if when in ("after", "routers after"):
        apply(model, plan)
    for layer in model.model.layers:
        if when == "routers after":
            fully_shard(layer.mlp.gate)
        fully_shard(layer)
    fully_shard(model)
    model = {"adapted": adapted, "compiled": compiled}.get(when, lambda m: m)(model)
    identity = describe_model(reference)
    if when in ("after", "routers after"):
        remove(model)
    assert not [m for m in model.modules() if "C2R" in type(m).__name__]
    assert describe_model(model)["model_fingerprint"] == identity["model_fingerprint"]
    assert np.array_equal(expert_loads(profile(model, IDS)), loads_of_rows(reference, rows))
    measured = measure(model, IDS, plan)
    assert measured.reference is not None
    assert abs(measured.reference.loss - loss_of_rows(reference, rows)) < 1e-5
    apply(reference, plan)
    assert abs(measured.loss - loss_of_rows(reference, rows)) < 1e-5
    apply(model, plan)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(run(model), run(reference))


def _distributed_data_parallel(_: Any) -> None:
    reference, model = fresh(), DistributedDataParallel(fresh())
    plan = small_plan(find_sites(reference))
    batches = [IDS] * (1 + dist.get_rank())  # other numbers of passes: none may wait for another
    assert np.array_equal(expert_loads(profile(model, IDS)), loads_of_rows(reference, IDS.tolist()))
    apply(reference, plan)
    expected = loss_of_rows(reference, IDS.tolist())
    assert abs(measure(model, batches, plan).loss - expected) < 1e-5
    apply(model.module, plan)
    torch.testing.assert_close(run(model), run(reference))


@pytest.mark.distributed
def test_wrappers_over_ranks() -> None:
    whens = ("first", "after", "routers after", "compiled")
    checks: dict[str, Any] = {f"sharded, {when}": partial(_sharded, when=when) for when in whens}
    checks["DDP"] = _distributed_data_parallel
    failed = {name: text for name, text in run_checks(checks, num_ranks=2).items() if text}
    assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
