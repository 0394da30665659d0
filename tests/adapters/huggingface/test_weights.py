"""Models whose weights are not where they are used: the same figures, or where they are missed."""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from transformers import AutoModelForCausalLM

from c2r.adapters.huggingface import (
    apply,
    describe_model,
    find_sites,
    fingerprint,
    from_pretrained,
    load_model,
    profile,
    remove,
    save_pretrained,
)
from c2r.adapters.huggingface.weights import is_offloaded
from c2r.errors import ModelError
from c2r.measuring import measure
from tests.adapters.huggingface.checks import expert_loads, run, small_plan, token_ids
from tests.adapters.huggingface.families import FAMILIES
from tests.adapters.huggingface.independent import loads_of_rows, loss_of_rows
from tests.adapters.huggingface.test_errors_leave_no_trace import fingerprint_of as all_of

BY_NAME = {family.name: family for family in FAMILIES}
IDS = token_ids()
CPU = torch.device("cpu")


def fresh() -> Any:
    return BY_NAME["qwen3_moe"].model()


def fingerprint_of(model: Any) -> dict[str, Any]:
    """All of a model but its tensors, in whose place accelerate puts others at every pass."""
    return {k: v for k, v in all_of(model).items() if k not in ("weights", "own buffers")}


def to_cpu(model: Any, _: str) -> Any:
    cpu_offload(model, execution_device=CPU)
    return model


def to_cpu_with_buffers(model: Any, _: str) -> Any:
    cpu_offload(model, execution_device=CPU, offload_buffers=True)
    return model


def to_disk(model: Any, folder: str) -> Any:
    disk_offload(model, folder, execution_device=CPU)
    return model


def routers_to_disk(model: Any, folder: str) -> Any:
    """Parts that are offloaded themselves: accelerate gives them several hooks."""
    parts = {
        name: "disk" if name.endswith("gate") else "cpu"
        for name, module in model.named_modules()
        if not list(module.children()) or name.endswith(("gate", "experts"))
    }
    return dispatch_model(model, parts, main_device=CPU, offload_dir=folder)


def loaded_from_disk(model: Any, folder: str) -> Any:
    model.save_pretrained(f"{folder}/saved")
    layers = {f"model.layers.{number}": "disk" for number in range(2)}
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    return load_model(
        f"{folder}/saved",
        device_map={**layers, **dict.fromkeys(rest, "cpu")},
        offload_folder=f"{folder}/offloaded",
        attn_implementation="eager",
        experts_implementation="eager",
    )


AWAY: dict[str, Callable[[Any, str], Any]] = {
    entry.__name__: entry
    for entry in (to_cpu, to_cpu_with_buffers, to_disk, routers_to_disk, loaded_from_disk)
}


@pytest.mark.parametrize("name", AWAY)
def test_figures_are_those_of_the_model_in_memory(name: str, tmp_path: Any) -> None:
    reference = fresh()
    plan = small_plan(find_sites(reference))
    free = loss_of_rows(reference, IDS.tolist())
    apply(reference, plan)
    constrained, logits = loss_of_rows(reference, IDS.tolist()), run(reference)
    remove(reference)
    model = AWAY[name](fresh(), str(tmp_path))
    assert is_offloaded(model) and not is_offloaded(reference)
    assert fingerprint(model, find_sites(model)) == fingerprint(reference, find_sites(reference))
    before = {} if name == "to_cpu_with_buffers" else fingerprint_of(model)
    assert np.array_equal(expert_loads(profile(model, IDS)), loads_of_rows(reference, IDS.tolist()))
    measured = measure(model, IDS, plan)
    assert measured.loss == pytest.approx(constrained, rel=1e-6)
    assert measured.reference is not None
    assert measured.reference.loss == pytest.approx(free, rel=1e-6)
    if before:
        assert fingerprint_of(model) == before
    apply(model, plan)
    torch.testing.assert_close(run(model), logits)
    assert all(p.is_meta for n, p in model.named_parameters() if n.endswith("gate.weight"))


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded")
def test_an_offloaded_model_is_saved_with_its_plan(tmp_path: Any) -> None:
    model = loaded_from_disk(fresh(), str(tmp_path))
    apply(model, small_plan(find_sites(model)))
    save_pretrained(model, tmp_path / "constrained")
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    loaded = from_pretrained(tmp_path / "constrained", **options)
    assert torch.equal(run(loaded), run(model))


def half_empty() -> Any:
    model = fresh()
    model.model.layers[1].to("meta")
    return model


def on_meta() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(fresh().config)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (on_meta, r"25 of 25 weights on the meta device, empty \(first model.embed_tokens.weight"),
        (half_empty, r"11 of 25 weights .* \(first model.layers.1."),
        (lambda: fresh().to("meta"), "25 of 25 weights"),
    ],
    ids=["skeleton", "one layer", "moved"],
)
def test_weights_that_are_nowhere_are_named(make: Callable[[], Any], words: str) -> None:
    model, plan = make(), small_plan(find_sites(fresh()))
    for door in (find_sites, describe_model, lambda m: profile(m, IDS), lambda m: apply(m, plan),
                 lambda m: measure(m, IDS, plan)):  # fmt: skip
        with pytest.raises(ModelError, match=words):
            door(model)
    assert "_c2r_installation" not in vars(model)


def test_a_file_that_is_lost_while_running_leaves_no_trace(tmp_path: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = to_disk(fresh(), folder)
        find_sites(model)
        before = fingerprint_of(model)
    with pytest.raises(FileNotFoundError):
        profile(model, IDS)
    assert fingerprint_of(model) == before
