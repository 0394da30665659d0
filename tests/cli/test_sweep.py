"""`c2r sweep`, `c2r plan --sweep` and `c2r measure`, one after the other as a user runs them."""

import json

import pytest

import c2r.measuring
from c2r.cli.processes import run_processes
from c2r.planning import STRENGTH_NAMES
from tests.cli.test_cli import assert_refused, call, call_json

SMALL = ["--tokens", 2048, "--seq-len", 128, "--batch-size", 4]
POLICIES = ["--policy", "c2r=5", "--policy", "budgeted=0.05,0.3", "--policy", "pruned=0.2"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    from c2r.cli import run_command

    out = tmp_path_factory.mktemp("sweep") / "sweep.json"
    arguments = ["sweep", "tiny", "--ranks", 4, "--out", out, *SMALL, *POLICIES]
    assert run_command([str(part) for part in [*arguments, "--spread", "budgeted=0.05,0.3"]]) == 0
    return out


def test_the_document(swept):
    found = json.loads(swept.read_text())
    names = [(point["policy"], point["strength"]) for point in found["points"]]
    assert names[:4] == [("c2r", 5), ("budgeted", 0.05), ("budgeted", 0.3), ("pruned", 0.2)]
    assert [len(strengths) for _, strengths in names[4:]] == [4, 4]
    keys = {"loss", "perplexity", "kl", "top1_agreement", "copies", "copies_in_order"}
    keys |= {"remote_copies", "node_copies", "rank_load_max_over_mean", "active_experts_per_rank"}
    for entry in (found["baseline"], *found["points"]):
        assert keys <= set(entry)
        assert 1 <= entry["copies"] <= 4 and entry["num_tokens"] == 2048 - 16
    for point in found["points"]:
        low, high = point["loss_increase_interval"]
        assert low <= point["loss_increase"] <= high and point["kl"] > 0
    assert found["complete"] and found["partial"] == {}
    assert swept.with_suffix(".profile.safetensors").is_file()


def fewest_copies(swept):
    return min(point["copies"] for point in json.loads(swept.read_text())["points"])


def test_a_plan_by_time(capsys, swept):
    document = json.loads(swept.read_text())
    measured = [document["baseline"], *document["points"]]
    assert all(0 < found["layer_time"] < found["step_time"] for found in measured)
    profile = swept.with_suffix(".profile.safetensors")
    command = ["plan", profile, "--ranks", 4, "--sweep", swept, "--json"]
    fastest = call_json(capsys, *command, "--max-loss-increase", 10)["expected"]
    assert fastest["layer_time"] == min(found["layer_time"] for found in measured)
    least = call_json(capsys, *command, "--max-time", 1e9)["expected"]
    assert least["loss_increase"] == min(found["loss_increase"] for found in measured)
    assert_refused(capsys, ["the least time"], *command, "--max-time", 1e-9)


def test_a_plan_by_target_and_its_confirmation(capsys, swept, tmp_path):
    made_plan = tmp_path / "plan.safetensors"
    profile = swept.with_suffix(".profile.safetensors")
    allowed = fewest_copies(swept) + 0.05
    by_target = ["plan", profile, "--ranks", 4, "--sweep", swept, "--copies", allowed]
    by_target += ["--out", made_plan]
    made = call_json(capsys, *by_target)
    expected = made["expected"]
    assert expected["copies"] <= allowed
    arguments = ["measure", "tiny", "--plan", made_plan, "--half", *SMALL]
    found = call_json(capsys, *arguments)
    assert {"loss", "perplexity", "kl", "copies", "num_tokens"} <= set(found)
    for name in ("loss", "kl", "copies", "rank_load_max_over_mean", "loss_increase"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    status, out, _ = call(capsys, *arguments)
    assert status == 0 and "expected" in out
    assert_refused(
        capsys,
        ["no measured point meets the target", "fewest copies"],
        *by_target[:-4],
        *["--copies", 1.0, "--json"],
    )


def test_evaluate_without_a_plan(capsys):
    found = call_json(capsys, "measure", "tiny", *SMALL)
    assert (found["kl"], found["copies"], found["expected"]) == (0, 1, None)


def test_a_finished_sweep_is_not_run_again(capsys, swept, monkeypatch):
    before = json.loads(swept.read_text())
    monkeypatch.setattr(c2r.sweeps.resumable, "RunningSweep", None)
    arguments = ["sweep", "tiny", "--ranks", 4, "--out", swept, *SMALL, *POLICIES]
    found = call_json(capsys, *arguments, "--spread", "budgeted=0.05,0.3")
    assert found["points"] == before["points"] and "partial" not in found


@pytest.mark.parametrize(
    "num_processes", [1, pytest.param(2, marks=pytest.mark.distributed, id="on two ranks")]
)
def test_an_interrupted_sweep_goes_on(capsys, swept, tmp_path, monkeypatch, num_processes):
    out = tmp_path / "again.json"
    arguments = ["sweep", "tiny", "--ranks", 4, "--out", out, *SMALL, *POLICIES]
    add, calls = c2r.measuring.Tally.add_routing, []

    def interrupted(tally, routing):
        if len(calls) == 12:  # in the third batch of five plans
            raise KeyboardInterrupt
        calls.append(add(tally, routing))

    with monkeypatch.context() as patch:
        patch.setattr(c2r.measuring.Tally, "add_routing", interrupted)
        status, _, err = call(capsys, *arguments)
    assert status == 130 and "run the same command to resume" in err
    partial = json.loads(out.read_text())
    assert not partial["complete"]
    assert [tally["num_batches"] for tally in partial["partial"]["all"]] == [2] * 5
    if num_processes == 1:
        status, _, err = call(capsys, *arguments)
        assert status == 0 and "going on from there" in err
    else:
        assert run_processes([str(word) for word in arguments], num_processes) == 0
    whole, resumed = (json.loads(path.read_text()) for path in (swept, out))
    if num_processes == 1:
        assert resumed["points"] == whole["points"][:4]
    assert len(resumed["points"]) == 4 and resumed["complete"]
    for found, expected in zip(resumed["points"], whole["points"], strict=False):
        assert found["plan_fingerprint"] == expected["plan_fingerprint"]
        for key in ("loss", "kl", "copies", "loss_increase", "num_tokens", "step_time"):
            assert found[key] == pytest.approx(expected[key], rel=1e-6)
    record = out.with_name(f"{out.name}.run.yaml")
    assert sorted(tmp_path.iterdir()) == [out, record, out.with_suffix(".profile.safetensors")]


def test_transfer_and_plot(capsys, tmp_path):
    texts = []
    for name, line in (("a.txt", "def f(x):\n    return x + 1\n"), ("b.txt", "Call me Ishmael. ")):
        (tmp_path / name).write_text(line * 150)
        texts += ["--text", tmp_path / name]
    plot = tmp_path / "curve.png"
    arguments = ["--policy", "budgeted=0.1", "--transfer", "--plot", plot, *texts, *SMALL]
    out = ["--out", tmp_path / "sweep.json"]
    command = ["sweep", "tiny", "--ranks", 2, "--nodes", 2, *arguments, *out]
    found = call_json(capsys, *command)
    assert "Plans on other text" in call(capsys, *command)[1]
    pairs = [(entry["calibration"], entry["evaluation"]) for entry in found["transfer"]]
    assert pairs == [(a, b) for a in ("a.txt", "b.txt") for b in ("a.txt", "b.txt")]
    own, other = found["transfer"][0], found["transfer"][2]
    assert own["baseline"]["loss"] == pytest.approx(other["baseline"]["loss"])
    assert own["points"][0]["copies"] != other["points"][0]["copies"]
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_every_policy_is_in_the_help(capsys):
    out = " ".join(call(capsys, "plan", "--help")[1].split())
    assert all(name in out for name in STRENGTH_NAMES)


def test_mistakes(capsys, swept, tmp_path):
    profile = swept.with_suffix(".profile.safetensors")
    for arguments, words in [
        (["--policy", "oracle"], ["oracle", "choose top_k, c2r"]),
        (["--policy", "budgeted=much"], ["budgeted=much", "budgeted=0.05,0.1"]),
        (["--policy", "budgeted=1"], ["eps = 1.0", "below 1"]),
        (["--policy", "group_limited=5"], ["m = 5", "4 ranks", "from 1 to 4"]),
        (["--policy", "c2r=2"], ["T = 2", "from 3 to 31"]),
        (["--nodes", 3], ["4 ranks", "3 nodes"]),
        (["--policy", "priced=nan"], ["price = nan"]),
    ]:
        assert_refused(capsys, words, "sweep", "tiny", "--ranks", 4, *SMALL, *arguments)
    assert_refused(capsys, ["33", "32"], "sweep", "tiny", "--ranks", 33, *SMALL)
    short = tmp_path / "short.txt"
    short.write_text("x")
    text = ["--ranks", 4, "--text", short]
    assert_refused(capsys, ["short.txt", "too short"], "sweep", "tiny", *text)
    short.write_text("xy")
    assert_refused(capsys, ["no token to predict"], "sweep", "tiny", *text)
    assert_refused(capsys, ["give several"], "sweep", "tiny", "--transfer", *text)
    (tmp_path / "other.json").write_text("{}")
    out = ["--out", tmp_path / "other.json"]
    assert_refused(capsys, ["not written by"], "sweep", "tiny", "--ranks", 4, *SMALL, *out)
    command = ["plan", profile, "--ranks", 4, "--json"]
    assert_refused(capsys, ["c2r sweep MODEL"], *command, "--copies", 1.5)
    assert_refused(capsys, ["--max-time or --copies"], *command, "--sweep", swept)
    by_target = [*command, "--sweep", swept, "--copies", fewest_copies(swept) + 0.05]
    assert_refused(capsys, ["leave out --policy"], *by_target, "--policy", "c2r")
    assert_refused(capsys, ["rank load within 1", "the best has"], *by_target, "--max-load", 1)
    assert_refused(capsys, ["m = 9", "from 1 to 4"], *command, "--policy", "group_limited",
                   "--strength", 9)  # fmt: skip
