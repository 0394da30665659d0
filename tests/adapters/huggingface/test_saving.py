"""A constrained model that is saved, copied or pickled by means of others keeps its plan."""

import copy
import io
import json
from pathlib import Path

import pytest
import torch

from c2r.adapters.huggingface import applied_plan, capture, from_pretrained, remove
from c2r.plans.model_folder import OWN_FOLDER
from tests.adapters.huggingface.checks import run
from tests.adapters.huggingface.test_folders import BY_NAME, EAGER, constrained


@pytest.fixture
def model():
    return constrained()


def test_the_models_own_method_keeps_the_plan(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "once")
    again = from_pretrained(tmp_path / "once", **EAGER)
    assert torch.equal(run(again), run(model))
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(run(from_pretrained(tmp_path / "twice", **EAGER)), run(model))
    assert not hasattr(model.config, "c2r")


def test_a_compiled_model_is_saved_with_the_plan(model, tmp_path: Path) -> None:
    torch.compile(model, backend="eager").save_pretrained(tmp_path / "model")
    assert torch.equal(run(from_pretrained(tmp_path / "model", **EAGER)), run(model))


def test_a_tuned_model_is_stamped_with_its_weights(model, tmp_path: Path) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(run(from_pretrained(tmp_path / "model", **EAGER)), run(model))


def test_engines_find_no_other_weights(model, tmp_path: Path) -> None:
    """They read every safetensors file at the top of a folder."""
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    names = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    assert names == set(index["weight_map"].values()) and len(names) > 1
    assert torch.equal(run(from_pretrained(tmp_path / "shards", **EAGER)), run(model))


def test_a_process_that_does_not_write_writes_no_plan(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model" / OWN_FOLDER).exists()


def test_without_a_plan_it_is_the_classs_own(model, tmp_path: Path) -> None:
    remove(model)
    assert "save_pretrained" not in vars(model)
    with capture(model):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / OWN_FOLDER).exists()


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3 (groups)", "gpt_oss", "phimoe"])
def test_pickled_and_copied(name: str, tmp_path: Path) -> None:
    model = constrained(name)
    content = io.BytesIO()
    torch.save(model, content)
    content.seek(0)
    for other in (torch.load(content, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(run(other), run(model))
        assert applied_plan(other).fingerprint == applied_plan(model).fingerprint
        assert other.save_pretrained.model is other
        remove(other)
        assert torch.equal(run(other), run(BY_NAME[name].model("eager")))
        assert applied_plan(model) is not None
