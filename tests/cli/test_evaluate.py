"""`c2r evaluate` as a user runs it: a plan against plain top-k, two results against each other."""

import json

import numpy as np
import pytest

from c2r.cli.processes import run_processes
from c2r.tasks import PAPER_TASKS
from c2r.tasks.questions import LOCAL_TASKS
from tests.cli.test_cli import assert_refused, call, call_json

GOALS = ["Boil an egg.", "Open a jar.", "Cut bread.", "Light a fire.", "Dry a shirt.", "Sharpen."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plan for the embedded model, and questions in PIQA's files."""
    from c2r.cli import run_command

    folder = tmp_path_factory.mktemp("tasks")
    profile, plan = str(folder / "p.safetensors"), str(folder / "plan.safetensors")
    assert (
        run_command(["profile", "tiny", "--out", profile, "--tokens", "4096", "--seq-len", "256"])
        == 0
    )
    policy = ["--policy", "budgeted=0.3"]
    assert run_command(["plan", profile, "--ranks", "4", *policy, "--out", plan]) == 0
    items = [{"goal": goal, "sol1": "With care.", "sol2": "Slowly, I see."} for goal in GOALS]
    (folder / "piqa-valid.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "piqa-valid-labels.lst").write_text("0\n1\n" * (len(GOALS) // 2))
    return folder


@pytest.fixture
def arguments(folder):
    return ["evaluate", "tiny", "--tasks", "piqa", "--tasks-dir", folder]


def test_a_plan_against_plain_top_k(capsys, folder, arguments):
    out = folder / "ours.json"
    found = call_json(capsys, *arguments, "--plan", folder / "plan.safetensors", "--out", out)
    assert json.loads(out.read_text()) == found
    (task,), (reference,) = found["tasks"], found["reference"]["tasks"]
    assert len(task["ids"]) == len(task["correct"]) == len(task["loglikelihoods"]) == len(GOALS)
    assert task["ids"] == reference["ids"]
    assert found["policies"] == ["budgeted"] and found["reference"]["policies"] == ["top_k"]
    assert found["routing"]["copies"] < found["reference"]["routing"]["copies"]
    assert {"c2r", "lm_eval", "torch", "transformers"} <= set(found["versions"])
    compared = found["comparison"]["piqa"]
    expected = [sum(entry["correct"]) / len(GOALS) for entry in (task, reference)]
    assert [compared["accuracy"], compared["reference_accuracy"]] == expected
    assert compared["interval"][0] <= compared["difference"] <= compared["interval"][1]
    assert compared["detectable"] >= 1 and not compared["is_shown"]  # six items show nothing


def test_the_same_again_replaces_its_result_among_the_files_of_tasks(capsys, folder, arguments):
    """As where torchrun starts all ranks again when the result was written."""
    out = folder / "beside the tasks.json"
    again = [*arguments, "--limit", 2, "--no-compare"]
    assert call(capsys, *again, "--out", out)[0] == 0
    first = json.loads(out.read_text())
    assert call(capsys, *again, "--out", out)[0] == 0
    assert json.loads(out.read_text())["tasks"] == first["tasks"]
    other = folder / "piqa-valid.jsonl"
    assert_refused(capsys, ["is an input of this command"], *again, "--out", other)


@pytest.mark.distributed
def test_ranks_share_the_items(capsys, folder, arguments):
    """Three ranks, of which two have an item more of the first four."""
    plan = ["--plan", folder / "plan.safetensors", "--limit", "4", "--batch-size", "1"]
    one, three = folder / "one.json", folder / "three.json"
    assert call(capsys, *arguments, *plan, "--out", one)[0] == 0
    shared = [str(word) for word in [*arguments, *plan, "--out", three]]
    assert run_processes(shared, 3) == 0
    expected, found = (json.loads(path.read_text()) for path in (one, three))
    assert found["comparison"] == expected["comparison"]
    assert found["routing"] == expected["routing"]
    for key in ("ids", "correct", "num_left_out", "num_truncated"):
        assert found["tasks"][0][key] == expected["tasks"][0][key]
    likelihoods = [document["tasks"][0]["loglikelihoods"] for document in (found, expected)]
    assert np.allclose(*likelihoods, rtol=1e-6)


def test_two_results(capsys, folder, arguments):
    out = folder / "plain.json"
    status, shown, _ = call(capsys, *arguments, "--out", out)
    assert status == 0 and "piqa" in shown and "verdict" not in shown
    status, shown, _ = call(capsys, "evaluate", "--compare", out, out)
    assert status == 0 and "no difference shown" in shown and "+0.0 (+0.0 to +0.0)" in shown
    found = call_json(capsys, "evaluate", "--compare", out, out)
    assert found["comparison"]["piqa"]["p_value"] == 1
    few = folder / "few.json"
    call(capsys, *arguments, "--limit", 4, "--out", few)
    assert_refused(capsys, ["2 of 6 items", "0 of 4"], "evaluate", "--compare", out, few)


def test_against_another_model_or_plan(capsys, folder, arguments):
    constrained = folder / "constrained"
    plan = ["--plan", folder / "plan.safetensors"]
    assert call(capsys, "apply", "tiny", *plan, "--out", constrained)[0] == 0
    found = call_json(capsys, *arguments, "--against", constrained)
    assert found["policies"] == ["top_k"] and found["reference"]["policies"] == ["budgeted"]
    same = call_json(capsys, *arguments, *plan, "--against-plan", plan[1])
    assert same["comparison"]["piqa"]["interval"] == [0, 0]
    alone = call_json(capsys, *arguments, *plan, "--no-compare")
    assert "reference" not in alone and alone["tasks"] == same["tasks"]


def test_mistakes(capsys, folder, arguments):
    assert_refused(capsys, ["name a model", "--compare"], "evaluate")
    assert_refused(capsys, ["no task is named", "task_files"], "evaluate", "tiny")
    assert_refused(capsys, ["no such", "check the path"], *arguments[:-1], folder / "no such")
    assert_refused(capsys, ["limit is 0"], *arguments, "--limit", 0)
    plan = folder / "plan.safetensors"
    assert_refused(capsys, ["no result of `c2r evaluate`"], "evaluate", "--compare", plan, plan)


def test_the_help_states_the_shots(capsys):
    shown = " ".join(call(capsys, "evaluate", "--help")[1].split())
    for name, shots in PAPER_TASKS.items():
        assert name in shown and f"({shots}" in shown
    assert set(LOCAL_TASKS) <= set(shown.replace(",", "").split())
