import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from c2r.adapters.huggingface import (
    applied_plan,
    apply,
    find_sites,
    fingerprint,
    from_pretrained,
    load_model,
    load_tokenizer,
    remove,
    save_pretrained,
)
from c2r.assets import tiny_folder
from c2r.errors import ArtifactError, InputError, ModelError, PlanError, PlanMismatchError
from c2r.plans import Plan
from c2r.plans.model_folder import PLAN_FILE
from tests.adapters.huggingface.checks import random_plan, run, small_plan
from tests.adapters.huggingface.families import FAMILIES
from tests.adapters.huggingface.test_discovery import dense

EAGER = {"experts_implementation": "eager", "attn_implementation": "eager"}
BY_NAME = {family.name: family for family in FAMILIES}


def constrained(name: str = "mixtral") -> Any:
    model = BY_NAME[name].model("eager")
    apply(model, small_plan(find_sites(model)))
    return model


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v3 (groups)", "gpt_oss"])
def test_saved_and_loaded_is_bit_equal(name: str, tmp_path: Path) -> None:
    model = constrained(name)
    save_pretrained(model, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model", **EAGER)
    assert torch.equal(run(loaded), run(model))
    assert not hasattr(model.config, "c2r")
    plan = applied_plan(loaded)
    assert plan is not None
    assert plan.provenance["model_fingerprint"] == fingerprint(model, find_sites(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_anyone_reads_the_folder_unconstrained(tmp_path: Path) -> None:
    model = constrained()
    save_pretrained(model, tmp_path / "model")
    remove(model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **EAGER)
    assert torch.equal(run(plain), run(model))


def test_load_model_applies_a_plan_in_the_folder_and_a_new_plan_replaces_it(tmp_path: Path) -> None:
    save_pretrained(constrained(), tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert applied_plan(loaded) is not None
    sites = find_sites(loaded)
    apply(loaded, random_plan(sites))
    save_pretrained(loaded, tmp_path / "again")
    again = applied_plan(from_pretrained(tmp_path / "again"))
    assert again is not None
    assert again.fingerprint == random_plan(sites).fingerprint


def test_dtypes(tmp_path: Path) -> None:
    save_pretrained(constrained(), tmp_path / "model")
    assert load_model(tmp_path / "model", torch.bfloat16).dtype == torch.bfloat16
    assert load_model(tmp_path / "model").dtype == torch.float32


def test_saving_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="carries no plan"):
        save_pretrained(BY_NAME["mixtral"].model(), tmp_path / "model")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        save_pretrained(constrained(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_pretrained(constrained(), tmp_path / "model")
    assert (tmp_path / "model" / PLAN_FILE).is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Plan, "save", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        save_pretrained(constrained(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_no_folder_to_write_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save_pretrained(constrained(), tmp_path / "missing" / "model")


def test_a_folder_without_a_plan(tmp_path: Path) -> None:
    BY_NAME["mixtral"].model().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="c2r apply"):
        from_pretrained(tmp_path)


def test_a_plan_that_the_config_does_not_name(tmp_path: Path) -> None:
    save_pretrained(constrained(), tmp_path / "model")
    plan = Plan.load(tmp_path / "model" / PLAN_FILE)
    layers = (replace(plan.layers[0], strength=99.0), *plan.layers[1:])
    replace(plan, layers=layers).save(tmp_path / "model" / PLAN_FILE)
    with pytest.raises(PlanMismatchError, match=r"config\.json names plan"):
        from_pretrained(tmp_path / "model")


def test_other_weights_in_the_folder(tmp_path: Path) -> None:
    save_pretrained(constrained(), tmp_path / "model")
    other = BY_NAME["mixtral"].model()
    with torch.no_grad():
        other.model.layers[0].mlp.gate.weight += 1
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "model")
    with pytest.raises(PlanMismatchError, match="router weights"):
        from_pretrained(tmp_path / "model")


def test_a_truncated_plan_file(tmp_path: Path) -> None:
    save_pretrained(constrained(), tmp_path / "model")
    path = tmp_path / "model" / PLAN_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError):
        from_pretrained(tmp_path / "model")


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(InputError, match=r"no config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(InputError, match="cannot load a model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_family"}))
    with pytest.raises(ModelError, match="no_such_family"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError):
        load_model(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    save_pretrained(constrained(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load a model"):
        load_model(tmp_path / "model")


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    dense("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="llama is not a Mixture-of-Experts"):
        load_model(tmp_path)


def test_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_model, load_tokenizer):
        with pytest.raises(
            InputError, match=r"cannot load .* no-such-owner/no-such-model"
        ) as caught:
            load("no-such-owner/no-such-model")
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    """transformers would make an empty one for the embedded model's family."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_folder() / name).read_bytes())
    with pytest.raises(InputError, match="put the tokenizer's files beside the model"):
        load_tokenizer(tmp_path)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    save_pretrained(constrained(), tmp_path / "model", tokenizer=tokenizer)
    assert load_tokenizer(tmp_path / "model").encode("b") == [1]
