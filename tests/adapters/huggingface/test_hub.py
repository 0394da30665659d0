"""Constrained models and plans on the hub: shared, loaded by name, from the cache when offline."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from c2r.adapters.huggingface import (
    find_source,
    from_pretrained,
    load_tokenizer,
    push_to_hub,
    save_plan_only,
    save_pretrained,
)
from c2r.adapters.huggingface.card import model_card
from c2r.assets import tiny_folder
from c2r.cli import run_command
from c2r.errors import ArtifactError, InputError, PlanMismatchError
from c2r.plans import Plan
from c2r.plans.model_folder import BASE_FILE, PLAN_FILE
from c2r.results import Measurement
from tests.adapters.huggingface.test_folders import constrained
from tests.hub_server import Hub, serving
from tests.results.measurements import measurement_document

ROOT = Path(__file__).parents[3]


def run_program(task: str, folder: Path, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.adapters.huggingface.hub_program", task, str(folder)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_x", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_shared_and_loaded_again_is_bit_equal(tmp_path: Path) -> None:
    hub = Hub()
    with serving(hub) as address:
        shared = run_program("share", tmp_path, HF_ENDPOINT=address)
        asked = len(hub.requests)
        offline = run_program("load", tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
        assert len(hub.requests) == asked
    expected = {"equal": True, "plan": shared["plan"]}
    assert offline == dict.fromkeys(offline, expected)
    assert shared["loaded"].items() <= offline.items()
    assert (len(shared["loaded"]), len(offline)) == (8, 10)
    assert shared["bytes"] < 10_000
    assert set(hub.repositories["me/plan"]) == {PLAN_FILE, BASE_FILE, "README.md"}
    assert PLAN_FILE in hub.repositories["me/own"]
    assert b"base_model: me/base\n" in hub.repositories["me/plan"]["README.md"]


@pytest.fixture
def plan_folder(tmp_path: Path) -> Path:
    """A plan-only folder over a tiny Mixtral beside it."""
    save_pretrained(constrained(), tmp_path / "model")
    plan = Plan.load(tmp_path / "model" / PLAN_FILE)
    save_plan_only(plan, tmp_path / "plan", str(tmp_path / "model"))
    return tmp_path / "plan"


def set_base(folder: Path, **entries: str) -> None:
    path = folder / BASE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def cached(home: Path, name: str, folder: Path, leave_out: str = "") -> None:
    """Lays a folder out as huggingface_hub keeps what it fetched."""
    root = home / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / ("a" * 40)
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if path.is_file() and str(place) != leave_out:
            (snapshot / place).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / place).write_bytes(path.read_bytes())
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_plan_in_the_cache_is_found(plan_folder: Path, offline: Path) -> None:
    cached(offline, "me/model", plan_folder.parent / "model")
    set_base(plan_folder, base_model_name_or_path="me/model")
    cached(offline, "me/plan", plan_folder)
    plan = Plan.load(plan_folder / PLAN_FILE)
    assert find_source("me/model").plan.fingerprint == plan.fingerprint
    found = find_source("me/plan")
    assert found.plan.fingerprint == plan.fingerprint
    assert found.location == "me/model"


def test_a_model_of_the_hub_is_permuted(plan_folder: Path, offline: Path, tmp_path: Path) -> None:
    cached(offline, "me/model", plan_folder.parent / "model")
    assert run_command(["permute", "me/model", "--out", str(tmp_path / "renumbered")]) == 0
    assert find_source(tmp_path / "renumbered").plan is not None
    assert run_command(["permute", "me/none", "--out", str(tmp_path / "none")]) == 2


def test_a_named_plan_that_the_cache_lacks_is_told(plan_folder: Path, offline: Path) -> None:
    cached(offline, "me/model", plan_folder.parent / "model", leave_out=PLAN_FILE)
    set_base(plan_folder, base_model_name_or_path="me/model")
    cached(offline, "me/plan", plan_folder, leave_out=PLAN_FILE)
    for name in ("me/model", "me/plan"):
        for find in (find_source, from_pretrained, load_tokenizer):
            with pytest.raises(InputError, match=r"names plan \w+, but there is no c2r/plan"):
                find(name)


def test_a_name_that_the_cache_lacks(offline: Path) -> None:
    with pytest.raises(InputError, match="cannot load a model from me/nothing"):
        from_pretrained("me/nothing")


def test_the_plan_of_a_plan_only_folder_replaces_that_of_its_model(plan_folder: Path) -> None:
    other = Plan.load(plan_folder / PLAN_FILE)
    layers = tuple(replace(layer, policy="top_k", strength=0.0) for layer in other.layers)
    free = replace(other, layers=layers)
    save_plan_only(free, plan_folder.parent / "other", str(plan_folder.parent / "model"))
    assert find_source(plan_folder.parent / "other").plan.fingerprint == free.fingerprint


def test_a_revision_is_that_of_the_base(tmp_path: Path, plan_folder: Path, offline: Path) -> None:
    set_base(plan_folder, base_model_name_or_path="me/base", revision="v1")
    found = find_source(plan_folder, revision="main", trust_remote_code=False)
    assert found.location == "me/base"
    assert found.options == {"revision": "v1", "trust_remote_code": False}


@pytest.mark.parametrize("content", ["{}", "[]", '{"base_model_name_or_path": 3}', "{"])
def test_a_damaged_plan_only_folder(plan_folder: Path, content: str) -> None:
    (plan_folder / BASE_FILE).write_text(content)
    with pytest.raises(ArtifactError, match="base_model"):
        from_pretrained(plan_folder)


def test_another_plan_in_a_plan_only_folder(plan_folder: Path) -> None:
    plan = Plan.load(plan_folder / PLAN_FILE)
    layers = (replace(plan.layers[0], strength=99.0), *plan.layers[1:])
    replace(plan, layers=layers).save(plan_folder / PLAN_FILE)
    with pytest.raises(PlanMismatchError, match=r"base_model\.json names plan"):
        from_pretrained(plan_folder)


def test_other_weights_under_a_plan_only_folder(plan_folder: Path) -> None:
    set_base(plan_folder, base_model_name_or_path="tiny")
    with pytest.raises(PlanMismatchError):
        from_pretrained(plan_folder)


def test_what_cannot_be_written_or_pushed(plan_folder: Path, tmp_path: Path) -> None:
    plan = Plan.load(plan_folder / PLAN_FILE)
    with pytest.raises(InputError, match="no model folder"):
        save_plan_only(plan, tmp_path / "new", "nowhere")
    with pytest.raises(InputError, match="holds no plan to push"):
        push_to_hub(tiny_folder(), "me/tiny")
    assert not (tiny_folder() / "README.md").exists()
    with pytest.raises(InputError, match="which others do not have"):
        push_to_hub(plan_folder, "me/plan")
    set_base(plan_folder, base_model_name_or_path="me/base")
    with pytest.raises(InputError, match="did not take"):
        push_to_hub(plan_folder, "a name that cannot be")


def test_a_shared_plan_names_no_folder_of_this_machine(plan_folder: Path, offline: Path) -> None:
    cached(offline, "me/plan", plan_folder)
    with pytest.raises(InputError, match="a folder of the machine that wrote it"):
        from_pretrained("me/plan")


def test_the_card_tells_what_was_measured(plan_folder: Path) -> None:
    plan = Plan.load(plan_folder / PLAN_FILE)
    assert "Not measured" in model_card(plan)
    figures = {
        "plan_fingerprint": plan.fingerprint,
        "loss_increase": 0.0039,
        "loss_increase_interval": [0.001, 0.007],
        "copies": 1.234,
        "num_tokens": 4088,
    }
    reference = measurement_document(copies=2.468)
    document = measurement_document(**figures, reference=reference)
    card = model_card(plan, "me/base", Measurement.from_json(document))
    assert "base_model: me/base" in card
    assert "+0.39% (+0.10% to +0.70%)" in card
    assert "| 1.23 | 2.47 | 2.40 |" in card
    assert "4,088" in card
    with pytest.raises(PlanMismatchError, match="measure this plan"):
        model_card(plan, None, Measurement.from_json(measurement_document()))


def test_a_card_shows_no_path_of_this_machine(plan_folder: Path) -> None:
    card = (plan_folder / "README.md").read_text()
    assert str(plan_folder.parent) not in card
    assert "# model, routed by a plan" in card
