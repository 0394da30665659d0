"""`c2r estimate` as a user runs it, and the times beside copies in other commands."""

import json

import numpy as np
import pytest

from c2r.cli import run_command
from c2r.prediction import Workload, find_cluster
from c2r.prediction.memory import weight_gigabytes
from c2r.profiling import CollaborationProfile
from tests.cli.test_cli import assert_refused, call, call_json

QUICK = ["--tokens", "4096", "--seq-len", "256"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A profile of the embedded model, plans for 4 ranks, and a profile without sizes."""
    folder = tmp_path_factory.mktemp("estimate")
    profile = folder / "profile.safetensors"
    arguments = [
        ["profile", "tiny", "--out", profile, *QUICK],
        ["plan", profile, "--cluster", "hosts-4-10g", "--out", folder / "plan.safetensors"],
        ["plan", profile, "--cluster", "hosts-4-10g", "--replicas", "2", "--policy", "priced=0.1",
         "--out", folder / "replicas.safetensors"],
    ]  # fmt: skip
    for command in arguments:
        assert run_command([str(part) for part in command]) == 0
    known = CollaborationProfile.load(profile)
    CollaborationProfile(layers=known.layers).save(folder / "imported.safetensors")
    return folder


def test_the_table_and_the_document(capsys, folder):
    arguments = ["estimate", folder / "profile.safetensors", "--plan", folder / "plan.safetensors"]
    arguments += ["--cluster", "hosts-4-10g"]
    status, out, _ = call(capsys, *arguments)
    assert status == 0
    for word in (
        "once per expert",
        "in order",
        "placed",
        "four hosts",
        "off by 4 %",
        "It pays from",
        "fewer rows save",
        "reorder: rows of the busiest rank",
        "baseline: experts in the order of their ids, a token sent once per rank.",
        "on the text that it was planned on",
        "once per expert (",
    ):
        assert word in " ".join(out.split())
    found = call_json(capsys, *arguments)
    assert found["cluster"]["num_ranks"] == 4
    assert set(found["planned"]) == {"k_fold", "all_gather", "zero_redundancy"}
    step = found["planned"]["zero_redundancy"]
    assert 0 < step["exchange_share"] < 1
    parts = ("dispatch", "combine", "compute", "reorder", "launches")
    assert sum(step[part] for part in parts) == pytest.approx(step["layer"])
    assert step["step"] == pytest.approx(sum(step["layers"]) + step["rest"])
    assert step["layer"] < found["in_order"]["zero_redundancy"]["layer"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("teraflops", None, ["lacks teraflops", "typical is 400"]),
        ("outer_gigabytes", "-5", ["line 7", "outer_gigabytes is -5", "50 for 400 Gbit/s"]),
        ("memory_gigabytes", "1e12", ["line 11", "memory_gigabytes is", "typical is 80"]),
        ("num_ranks", "4.5", ["line 3", "num_ranks is 4.5"]),
    ],
)
def test_a_cluster_that_is_wrong(capsys, folder, tmp_path, key, value, words):
    path = tmp_path / "mine.yaml"
    find_cluster("hosts-4-10g").save(path)
    lines = path.read_text().splitlines()
    place = [line.split(":")[0] for line in lines].index(key)
    lines[place : place + 1] = [] if value is None else [f"{key}: {value}"]
    path.write_text("\n".join(lines))
    assert_refused(capsys, words, "estimate", folder / "profile.safetensors", "--cluster", path)


def test_ranks_that_do_not_fit_the_plan(capsys, folder):
    arguments = [folder / "profile.safetensors", "--plan", folder / "plan.safetensors"]
    words = ["4 ranks on 4 nodes", "h100-8 has 8 on 1"]
    assert_refused(capsys, words, "estimate", *arguments, "--cluster", "h100-8")
    words = ["has 8 ranks on 1 nodes", "the plan is for 4 on 4"]
    assert_refused(capsys, words, "traffic", *arguments, "--cluster", "h100-8")


def small_memory(tmp_path, gigabytes):
    path = tmp_path / "small.yaml"
    find_cluster("hosts-4-10g").save(path)
    path.write_text(
        path.read_text().replace("memory_gigabytes: 24.0", f"memory_gigabytes: {gigabytes}")
    )
    return path


def test_replicas_that_do_not_fit_the_memory(capsys, folder, tmp_path):
    path = small_memory(tmp_path, 0.001)
    arguments = ["estimate", folder / "profile.safetensors", "--cluster", path]
    words = ["2 replicas a rank do not fit", "0.001 GB", "80 %", "--replicas"]
    assert_refused(capsys, words, *arguments, "--plan", folder / "replicas.safetensors")
    status, _, err = call(capsys, *arguments)
    assert status == 0 and "the weights do not fit" in err


def test_weights_may_fill_as_much_as_plan_lets_them(capsys, folder, tmp_path):
    """0.0082 GB of weights: room for them, yet more than 80 % of it."""
    arguments = ["estimate", folder / "profile.safetensors", "--cluster"]
    held = weight_gigabytes(
        Workload.of(CollaborationProfile.load(folder / "profile.safetensors")), [8] * 4
    )
    _, _, err = call(capsys, *arguments, small_memory(tmp_path, held / 0.79))
    assert "the weights do not fit" not in err
    _, _, err = call(capsys, *arguments, small_memory(tmp_path, held / 0.81))
    assert "the weights do not fit" in err and "80 % of" in err


def test_what_commands_take(capsys):
    found = call_json(capsys, "estimate", "--commands", "--model", "tiny", "--ranks", 8)
    assert found["derived"] and found["num_ranks"] == 8
    names = [need["command"] for need in found["commands"]]
    assert names == ["profile", "sweep", "evaluate", "finetune"]
    status, out, _ = call(capsys, "estimate", "--commands", "--model", "tiny", "--ranks", 8)
    assert status == 0 and "Derived from config.json, not measured" in out
    assert_refused(capsys, ["--model"], "estimate", "--commands", "--ranks", 8)


def test_a_profile_without_sizes_asks_for_the_model(capsys, folder):
    profile = folder / "imported.safetensors"
    assert_refused(
        capsys, ["hidden_size", "--model"], "estimate", profile, "--cluster", "hosts-4-10g"
    )
    sized = call_json(capsys, "estimate", profile, "--cluster", "hosts-4-10g", "--model", "tiny")
    known = call_json(
        capsys, "estimate", folder / "profile.safetensors", "--cluster", "hosts-4-10g"
    )
    assert sized["workload"] == known["workload"] and sized["in_order"] == known["in_order"]


def test_a_configuration_without_experts(capsys, folder, tmp_path):
    dense = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1,
             "architectures": ["LlamaForCausalLM"]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(dense))
    arguments = ["estimate", folder / "imported.safetensors", "--ranks", 4, "--model", tmp_path]
    assert_refused(capsys, ["no routers"], *arguments)


def test_a_step_needs_tokens_and_routing(capsys, folder):
    arguments = ["estimate", folder / "profile.safetensors", "--ranks", 4]
    assert_refused(capsys, ["--tokens-per-rank"], *arguments, "--tokens-per-rank", 0)
    assert_refused(capsys, ["--phase", "prefill"], *arguments, "--phase", "rest")
    assert_refused(capsys, ["how many devices"], *arguments[:2])
    assert_refused(capsys, ["which routing", "--experts"], "estimate", "--ranks", 4)


def test_ranks_by_the_thousand(capsys, folder, tmp_path):
    figure = tmp_path / "scale.svg"
    arguments = ["estimate", "--scale", "--experts", 16, "--top-k", 2, "--cluster", "h100-8x2"]
    arguments += ["--replicas", 1, "--max-ranks", 32]
    status, out, err = call(capsys, *arguments, "--figure", figure)
    assert status == 0 and "routing is drawn: 16 experts" in err
    assert "16 on 2" in out and "replicas" in out and "policy" not in out
    assert b"</svg>" in figure.read_bytes()
    points = call_json(capsys, *arguments)["points"]
    assert [point["num_ranks"] for point in points] == [8, 16, 32]
    # 16 experts are shared by 16 ranks at most; 32 are two such groups, and as fast.
    assert [point["group_ranks"] for point in points] == [8, 16, 16]
    assert points[1]["step"] == points[2]["step"]
    assert "hierarchical" not in points[0]["step"] and "hierarchical" in points[1]["step"]
    for point in points:
        best = base = point["step"]["k_fold"]
        for name, saved in point["saved"].items():
            assert saved == pytest.approx((best - point["step"][name]) / base)
            best = min(best, point["step"][name])


def test_a_policy_counts_where_its_routing_was_measured(capsys, folder):
    plan, profile = folder / "replicas.safetensors", folder / "profile.safetensors"
    arguments = ["estimate", profile, "--scale", "--cluster", "hosts-4-10g", "--max-ranks", 8]
    arguments += ["--plan", plan, "--constrained", profile]
    (point,) = call_json(capsys, *arguments)["points"]
    assert "policy" not in point["step"]  # priced on 4 ranks chooses otherwise than on 8


def test_drawn_experts_must_make_sense(capsys):
    scale = ["estimate", "--scale", "--cluster", "h100-8"]
    assert_refused(capsys, ["4 experts with k = 8"], *scale, "--experts", 4)
    assert_refused(capsys, ["skew of 9"], *scale, "--experts", 16, "--skew", 9)


def test_time_beside_the_copies_of_traffic(capsys, folder):
    profile, plan = folder / "profile.safetensors", folder / "replicas.safetensors"
    found = call_json(capsys, "traffic", profile, "--plan", plan, "--cluster", "hosts-4-10g")
    for row, step in zip(found["layers"], found["time"]["planned"]["layers"], strict=True):
        assert row["milliseconds_placed"] == step
    mean = found["mean"]["milliseconds_in_order"]
    assert mean == pytest.approx(np.mean(found["time"]["in_order"]["layers"]))
    out = " ".join(call(capsys, "traffic", profile, "--plan", plan)[1].split())
    assert "on hosts-4-10g" in out and "not of the plan's policy (priced)" in out


def test_time_beside_the_copies_of_measure(capsys, folder):
    arguments = ["measure", "tiny", "--plan", folder / "replicas.safetensors", "--tokens", 1024]
    arguments += ["--seq-len", 128, "--cluster", "hosts-4-10g"]
    found = call_json(capsys, *arguments)
    time = found["time"]
    assert time["cluster"]["name"] == "hosts-4-10g"
    assert 0 < time["policy"]["layer"] < time["top_k"]["layer"]
    out = call(capsys, *arguments)[1]
    assert "under the plan's policy, priced" in out and "plain top-k, same placement" in out
