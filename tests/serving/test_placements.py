"""A file of `c2r export` beside the folder that an engine serves: only one of the two may place."""

import json

import numpy as np
import pytest

from c2r.cli import run_command
from c2r.errors import PlanMismatchError
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.plans.model_folder import PLAN_FILE, check_numbering
from c2r.serving import sglang
from c2r.serving.placements import check_placement, is_in_order

FORMATS = {"sglang": "json", "trtllm": "yaml", "vllm-ascend": "json", "vllm": "json"}


def call(*arguments):
    return run_command([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of the embedded model: a plan, a constrained and two renumbered folders, exported files."""
    folder = tmp_path_factory.mktemp("placements")
    profile, plan = folder / "profile.safetensors", folder / "plan.safetensors"
    constrained, renumbered = folder / "constrained", folder / "renumbered"
    for command in (
        ("profile", "tiny", "--tokens", 2000, "--out", profile),
        ("plan", profile, "--ranks", 4, "--policy", "priced=0.1", "--out", plan),
        ("plan", profile, "--ranks", 4, "--seed", 9, "--objective", "sets", "--out", f"{plan}2"),
        ("apply", "tiny", "--plan", plan, "--out", constrained),
        ("permute", constrained, "--out", renumbered),
        *(
            ("export", "--plan", plan, "--format", name, "--out", folder / f"{name}.{end}")
            for name, end in FORMATS.items()
        ),
    ):
        assert call(*command) == 0
    return folder


def test_a_file_of_any_format_is_for_the_folder_as_it_was(made, capsys):
    for name, end in FORMATS.items():
        path = made / f"{name}.{end}"
        assert call("serve-check", made / "constrained", "--placement", path) == 0
        assert f"{path} places the experts of" in capsys.readouterr().err
        assert call("serve-check", made / "renumbered", "--placement", path, "--json") == 2
        said = capsys.readouterr()
        assert said.out == "" and "`c2r permute` renumbered" in said.err
        assert "without the file, or with the folder as it was" in said.err


def test_a_file_of_another_plan_is_refused(made, capsys, tmp_path):
    other = tmp_path / "other.json"
    command = ("export", "--plan", f"{made / 'plan.safetensors'}2", "--format", "sglang")
    assert call(*command, "--out", other) == 0
    assert call("serve-check", made / "constrained", "--placement", other) == 2
    assert "does not place the experts of" in capsys.readouterr().err


def test_a_model_without_a_plan_is_not_compared(made, capsys):
    assert call("serve-check", "tiny", "--placement", made / "sglang.json") == 2
    assert "holds no plan" in capsys.readouterr().err


def test_the_plan_of_one_folder_is_not_exported_for_the_other(made, capsys, tmp_path):
    out, plan = tmp_path / "placed.json", made / "plan.safetensors"
    command = ("export", "--format", "sglang", "--out", out, "--json")
    assert call(*command, "--plan", plan, "--model", made / "renumbered") == 2
    assert "was renumbered by `c2r permute`" in capsys.readouterr().err
    own = made / "renumbered" / PLAN_FILE
    assert call(*command, "--plan", own, "--model", made / "constrained") == 2
    assert "was not renumbered by it" in capsys.readouterr().err
    assert not out.exists()
    for plan_file, folder in ((plan, "constrained"), (own, "renumbered")):
        found = made / folder
        assert call(*command, "--plan", plan_file, "--model", found, "--force") == 0
        assert str(found) in json.loads(capsys.readouterr().out)["launch"][0]


def test_the_plan_of_a_folder_is_exported_for_that_folder(made, capsys, tmp_path):
    command = ("export", "--format", "sglang", "--json")
    own = made / "renumbered" / PLAN_FILE
    assert call(*command, "--plan", own, "--out", tmp_path / "own.json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(made / "renumbered")
    plan = made / "plan.safetensors"
    assert call(*command, "--plan", plan, "--out", tmp_path / "placed.json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["model"] == "tiny" and "for tiny with its experts as" in said.err


def test_a_plan_that_knows_no_weights_is_only_for_its_own_folder(made):
    plan = Plan.load(made / "plan.safetensors")
    unknown = Plan(layers=plan.layers, topology=plan.topology)
    check_numbering(unknown, made / "constrained")
    with pytest.raises(PlanMismatchError, match="was renumbered"):
        check_numbering(unknown, made / "renumbered")
    with pytest.raises(PlanMismatchError, match="is not for"):
        check_placement(str(made / "renumbered"), plan, made / "missing.json")


def test_experts_in_order():
    layer = LayerPlan(num_experts=4, top_k=2, placement=np.array([0, 0, 1, 1]))
    topology = ClusterTopology(num_ranks=2)
    assert is_in_order(Plan(layers=(layer,), topology=topology))
    other = LayerPlan(num_experts=4, top_k=2, placement=np.array([0, 1, 1, 0]))
    assert not is_in_order(Plan(layers=(layer, other), topology=topology))


class TestInsideSGLang:
    """The plugin sees the folder and the file that SGLang is started with."""

    def test_a_file_beside_a_renumbered_folder_ends_it(self, made):
        folder = made / "renumbered"
        plan = Plan.load(folder / PLAN_FILE)
        with pytest.raises(PlanMismatchError, match="start the engine without the file"):
            sglang._check_placement(str(folder), plan, str(made / "sglang.json"))

    def test_what_places_as_planned_is_passed_over_in_silence(self, made, caplog):
        caplog.set_level("INFO")
        for folder, placement in (("constrained", made / "sglang.json"), ("renumbered", "trivial")):
            plan = Plan.load(made / folder / PLAN_FILE)
            sglang._check_placement(str(made / folder), plan, str(placement))
        assert caplog.messages == []

    def test_experts_that_are_not_placed_as_planned_are_told(self, made, caplog):
        caplog.set_level("INFO")
        folder = made / "constrained"
        plan = Plan.load(folder / PLAN_FILE)
        for placement in ("trivial", None):
            sglang._check_placement(str(folder), plan, placement)
        assert len(caplog.messages) == 2 and "places them in order" in caplog.messages[0]
        (made / "of another.json").write_text('{"physical_to_logical_map": [[0]]}')
        sglang._check_placement(str(folder), plan, str(made / "of another.json"))
        assert "does not place the experts" in caplog.messages[2]
