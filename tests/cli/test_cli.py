"""Every command as a user starts it: exit status, stdout, stderr, files."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from itertools import islice

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.main import get_command

import c2r
from c2r.cli import app, run_command
from c2r.cli.models import load_model_and_tokenizer, resolve_texts
from c2r.ops.backend import OPS_WITH_KERNELS
from c2r.parallel import Share
from c2r.plans import Plan
from c2r.prediction import find_cluster
from c2r.profiling import CollaborationProfile, merging
from c2r.profiling import profile as profile_module
from c2r.text import token_batches
from tests.reporting.profiles import clustered_profile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A profile of the embedded model and a plan from it."""
    folder = tmp_path_factory.mktemp("cli")
    profile, plan = str(folder / "profile.safetensors"), str(folder / "plan.safetensors")
    arguments = ["--tokens", "6000", "--seq-len", "256"]
    assert run_command(["profile", "tiny", "--out", profile, *arguments]) == 0
    assert run_command(["plan", profile, "--ranks", "4", "--top-t", "8", "--out", plan]) == 0
    return folder


def call(capsys, *arguments):
    capsys.readouterr()
    status = run_command([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def call_json(capsys, *arguments):
    status, out, err = call(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def assert_refused(capsys, words, *arguments):
    """Status 2, nothing on stdout, one line that holds the words."""
    status, out, err = call(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("c2r: ")]
    assert (status, out) == (2, "") and len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_inspect_a_profile(capsys, folder):
    found = call_json(capsys, "inspect", folder / "profile.safetensors")
    assert found["kind"] == "profile"
    shape = [found[key] for key in ("num_layers", "num_experts", "top_k", "num_tokens")]
    assert shape == [4, 32, 4, 6000]
    keys = {"effective_collaborators", "normalized_entropy", "top_partner_share"}
    keys |= {"load_max_over_mean", "load_cv"}
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2, 3]
    for values in (*found["layers"], found["mean"]):
        assert keys <= set(values)
        assert 1 <= values["effective_collaborators"] <= 31
    status, out, _ = call(capsys, "inspect", folder / "profile.safetensors")
    assert status == 0 and "effective collaborators" in out and "mean" in out


def test_inspect_a_plan(capsys, folder):
    found = call_json(capsys, "inspect", folder / "plan.safetensors")
    assert (found["kind"], found["num_ranks"]) == ("plan", 4)
    for layer in found["layers"]:
        assert layer["top_t"] == 8 and np.array(layer["partners"]).shape == (32, 8)
        assert np.bincount(layer["placement"]).tolist() == [8] * 4
    assert call(capsys, "inspect", folder / "plan.safetensors")[0] == 0


def test_several_profiles_are_pooled_or_the_worst_counts(capsys, folder):
    command = ["plan", folder / "profile.safetensors", "--ranks", 4, "--json"]
    assert_refused(capsys, ["give more than one"], *command, "--worst")
    twice = [*command, folder / "profile.safetensors"]
    pooled = call_json(capsys, *twice)
    worst = call_json(capsys, *twice, "--worst", "--jobs", 2)
    alone = call_json(capsys, *command)
    times = [found["time"]["planned"]["layer"] for found in (worst, alone)]
    assert times[0] == pytest.approx(times[1], rel=0.02)
    assert pooled["mean"]["copies"] == pytest.approx(alone["mean"]["copies"], rel=0.05)


def test_the_worst_of_several_profiles_is_found_reading_each_once(capsys, folder, monkeypatch):
    read, layers = profile_module.read_layer, []

    def counted(index, *arguments):
        layers.append(index)
        return read(index, *arguments)

    for module in (profile_module, merging):
        monkeypatch.setattr(module, "read_layer", counted)
    path = folder / "profile.safetensors"
    call_json(capsys, "plan", path, path, "--worst", "--ranks", 4, "--json")
    assert sorted(layers) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_replicas_that_pay_or_a_number(capsys, folder):
    command = ["plan", folder / "profile.safetensors", "--ranks", 4, "--json"]
    chosen = call_json(capsys, *command, "--replicas", "auto")
    plain = call_json(capsys, *command)
    assert chosen["time"]["planned"]["layer"] <= plain["time"]["planned"]["layer"]
    assert_refused(capsys, ["--replicas some", "or auto"], *command, "--replicas", "some")


def test_the_plan_says_whether_it_pays_and_what_is_next(capsys, folder, tmp_path):
    profile, out = folder / "profile.safetensors", tmp_path / "plan.safetensors"
    command = ["plan", profile, "--out", out, "--force"]
    _, _, err = call(capsys, *command, "--cluster", "hosts-4-10g", "--replicas", 1)
    assert "1 replica a rank in each layer: " in err and "GB of weights on a rank" in err
    assert "next: judge it on other text than it was planned on: c2r profile tiny --text" in err
    assert "on the text that it was planned on. Of a step, fewer rows save" in err
    assert "gains more by sending it once per rank" in err and "It pays from" in err
    _, _, err = call(capsys, *command, "--ranks", 32)
    assert "Each rank holds one expert" in err and f"--replicas auto --out {out}" in err
    _, _, err = call(capsys, *command, "--ranks", 4, "--policy", "priced=0.1")
    assert f"c2r measure tiny --plan {out} --text OTHER.txt --json > measured.json" in err


def test_decoding_has_fewer_tokens_and_the_files_say_so(capsys, folder, tmp_path):
    profile, out = folder / "profile.safetensors", tmp_path / "plan.safetensors"
    command = ["plan", profile, "--cluster", "hosts-4-10g", "--phase", "decode", "--json"]
    planned = call_json(capsys, *command, "--out", out)
    assert planned["time"]["workload"]["tokens_per_rank"] == 128
    assert Plan.load(out).provenance["workload"] == {"tokens_per_rank": 128, "phase": "decode"}
    page = call_json(capsys, "report", profile, out, "--out", tmp_path / "report.html")
    assert "128 tokens a rank, decode" in page["verdict"]["basis"]
    found = call_json(capsys, "traffic", profile, out)
    assert found["time"]["cluster"]["name"] == "hosts-4-10g"  # the plan's
    assert "nodes" not in (tmp_path / "plan.safetensors.run.yaml").read_text()


def test_replicas_are_planned_shown_and_sent(capsys, folder, tmp_path):
    profile, out = folder / "profile.safetensors", tmp_path / "plan.safetensors"
    planned = call_json(capsys, "plan", profile, "--ranks", 4, "--replicas", 2, "--out", out)
    shown = call_json(capsys, "inspect", out)
    sent = call_json(capsys, "traffic", profile, "--plan", out)
    plain = call_json(capsys, "traffic", profile, "--plan", folder / "plan.safetensors")
    assert [layer["replicas"] for layer in shown["layers"]] == [
        layer["replicas"] for layer in planned["layers"]
    ]
    assert np.array(shown["layers"][0]["replicas"]).shape == (4, 2)
    assert sent["mean"]["copies_placed"] == planned["mean"]["copies"]
    assert sent["mean"]["copies_placed"] < plain["mean"]["copies_placed"]
    assert " + " in call(capsys, "inspect", out)[1]
    _, _, err = call(capsys, "permute", "tiny", "--plan", out, "--out", tmp_path / "renumbered")
    assert "the plan has 2 replicas a rank" in err and "--format sglang" in err


def test_traffic_between_nodes_is_shown(capsys, folder, tmp_path):
    profile, out = folder / "profile.safetensors", tmp_path / "plan.safetensors"
    arguments = ["--ranks", 4, "--nodes", 2, "--inter-node-cost", 20]
    planned = call_json(capsys, "plan", profile, *arguments, "--out", out)
    flat = call_json(capsys, "plan", profile, *arguments[:-1], 0)
    assert planned["mean"]["node_copies_placed"] < flat["mean"]["node_copies_placed"]
    assert "visited," in call(capsys, "traffic", profile, "--plan", out)[1]


def test_traffic(capsys, folder):
    arguments = ["traffic", folder / "profile.safetensors", "--plan", folder / "plan.safetensors"]
    found = call_json(capsys, *arguments)
    assert found["num_ranks"] == 4
    for values in (*found["layers"], found["mean"]):
        assert values["copies_once_per_expert"] == 4
        assert 1 <= values["copies_placed"] <= values["copies_in_order"] <= 4
        assert values["rank_load_max_over_mean"] >= 1
    sized = call_json(capsys, *arguments, "--hidden-size", 128)
    expected = sized["mean"]["remote_copies_placed"] * 256
    assert sized["mean"]["bytes_per_token"] == pytest.approx(expected)
    assert "in order" in call(capsys, *arguments)[1]
    assert call_json(capsys, "traffic", *arguments[1:2], folder / "plan.safetensors")["num_ranks"]
    assert_refused(capsys, ["which plan?"], *arguments[:2])


def test_plan_json_without_a_file(capsys, folder):
    found = call_json(capsys, "plan", folder / "profile.safetensors", "--ranks", 2)
    assert {"copies", "rank_load_max_over_mean", "placement"} <= set(found["layers"][0])
    assert {"copies", "rank_load_max_over_mean"} <= set(found["mean"])
    assert found["layers"][0]["policy"] == "top_k"  # placement alone: nothing is lost
    assert found["time"]["cluster"]["num_ranks"] == 2
    listed = call_json(
        capsys, "plan", folder / "profile.safetensors", "--ranks", 2, "--policy", "c2r"
    )
    assert listed["layers"][0]["top_t"] == 16  # half of the experts, as published for Qwen


def test_a_policy_with_its_strength_is_the_policy_and_its_strength(capsys, folder):
    plan = ["plan", folder / "profile.safetensors", "--ranks", 4]
    for together, apart in [
        (["priced=0.1"], ["priced", "--strength", 0.1]),
        (["c2r=8,8,6,4"], ["c2r", "--strength", "8,8,6,4"]),
        (["c2r=8"], ["c2r", "--top-t", 8]),
    ]:
        ours, theirs = (call_json(capsys, *plan, "--policy", *words) for words in (together, apart))
        assert ours["plan_fingerprint"] == theirs["plan_fingerprint"]
    both = [*plan, "--policy", "priced=0.1", "--strength", 0.2, "--json"]
    assert_refused(capsys, ["--policy priced=0.1 and --strength 0.2", "leave one out"], *both)
    both = [*plan, "--policy", "c2r=8", "--top-t", 8, "--json"]
    assert_refused(capsys, ["give c2r its strength only"], *both)


def test_profile_is_the_same_for_a_seed(capsys, folder, tmp_path):
    again = tmp_path / "again.safetensors"
    arguments = ["--tokens", "6000", "--seq-len", "256", "--out", again]
    assert call(capsys, "profile", "tiny", *arguments)[0] == 0
    first = CollaborationProfile.load(folder / "profile.safetensors")
    second = CollaborationProfile.load(again)
    for a, b in zip(first.layers, second.layers, strict=True):
        assert np.array_equal(a.coactivation, b.coactivation)


def test_an_interrupted_profile_is_valid_and_goes_on(capsys, folder, tmp_path, monkeypatch):
    import c2r.traces

    out = tmp_path / "p.safetensors"
    command = ["profile", "tiny", "--tokens", "6000", "--seq-len", "256", "--out", out]
    update = c2r.traces.ProfileBuilder.update
    calls = []

    def interrupted(builder, trace):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(update(builder, trace))

    with monkeypatch.context() as patch:
        patch.setattr(c2r.traces.ProfileBuilder, "update", interrupted)
        status, _, err = call(capsys, *command)
    assert status == 130 and "run the same command to go on" in err
    partial = call_json(capsys, "inspect", out)
    assert partial["num_tokens"] == 3 * 4 * 256 and not partial["complete"]
    assert partial["is_running"] is False and partial["provenance"]["request"]["dtype"] == "float32"
    assert "this profile was interrupted" in call(capsys, "inspect", out)[2]
    status, _, err = call(capsys, *command)
    assert status == 0 and "3,072 tokens of this run" in err
    whole = CollaborationProfile.load(folder / "profile.safetensors")
    resumed = CollaborationProfile.load(out)
    for a, b in zip(whole.layers, resumed.layers, strict=True):
        assert np.array_equal(a.coactivation, b.coactivation)
        assert np.array_equal(a.routing_sets()[1], b.routing_sets()[1])


def test_a_profile_that_is_being_counted_is_not_called_interrupted(
    capsys, folder, tmp_path, monkeypatch
):
    """Another process holds the record of the run; without a record nobody can tell."""
    import c2r.traces

    out, seen = tmp_path / "p.safetensors", []
    profile = CollaborationProfile.load(folder / "profile.safetensors")
    update = c2r.traces.ProfileBuilder.update

    def looked_at(builder, trace):
        if not seen:
            unfinished = replace(profile, provenance={**profile.provenance, "complete": False})
            unfinished.save(out)
            inspected = [sys.executable, "-m", "c2r", "inspect", str(out)]
            seen.append(subprocess.run(inspected, capture_output=True, text=True, check=True))
        update(builder, trace)

    with monkeypatch.context() as patch:
        patch.setattr(c2r.traces.ProfileBuilder, "update", looked_at)
        assert call(capsys, "profile", "tiny", "--tokens", 3000, "--out", out)[0] == 0
    assert "still being counted; it is written every minute" in seen[0].stderr
    assert call_json(capsys, "inspect", out)["is_running"] is False
    copied = tmp_path / "copied.safetensors"
    replace(profile, provenance={**profile.provenance, "complete": False}).save(copied)
    assert call_json(capsys, "inspect", copied)["is_running"] is None
    assert "still being counted, or was interrupted" in call(capsys, "inspect", copied)[2]


@pytest.mark.distributed
def test_ranks_share_the_text_and_merge(folder, tmp_path):
    """Also what a rank of an earlier launch on four has left."""
    out = tmp_path / "p.safetensors"
    whole = CollaborationProfile.load(folder / "profile.safetensors")
    model, tokenizer = load_model_and_tokenizer("tiny")
    batches = token_batches(resolve_texts(None), tokenizer, seq_len=256, num_tokens=6000)
    share = Share(1, 4)
    c2r.profile(
        model,
        islice(share.of(batches), 1),
        out=tmp_path / "p.safetensors.rank1of4",
        request={**whole.provenance["request"], "share": share.to_json()},
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "29611", "-m", "c2r", "profile", "tiny", "--tokens", "6000"]
    command += ["--seq-len", "256", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    merged = CollaborationProfile.load(out)
    assert merged.num_tokens == 6000
    for a, b in zip(whole.layers, merged.layers, strict=True):
        assert np.array_equal(a.coactivation, b.coactivation)
        assert np.allclose(a.score_mass, b.score_mass)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "p.safetensors",
        "p.safetensors.run.yaml",
    ]


def test_import_of_the_authors_format(capsys, tmp_path):
    matrix = np.array([[[-1, 3, 1], [3, -1, 2], [1, 2, -1]]])
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(matrix))
    out = tmp_path / "p.safetensors"
    arguments = [tmp_path / "c.pkl", "--format", "c2r-pickle", "--top-k", 2, "--out", out]
    assert call_json(capsys, "import", *arguments)["num_experts"] == 3
    assert call_json(capsys, "inspect", out)["num_tokens"] == 6


def test_import_of_engine_traces(capsys, tmp_path):
    record = {"block": "decoder", "layer": 3, "num_tokens": 2, "topk": 2}
    lines = [{**record, "top_indices": [[0, 5], [1, 2]]}, {**record, "top_indices": [[0, 99]]}]
    path = tmp_path / "router_trace_rank0.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "p.safetensors"
    arguments = ["import", tmp_path, "--format", "megatron-trace", "--num-experts", 32]
    assert_refused(capsys, ["line 2", "--skip-bad"], *arguments, "--out", out)
    found = call_json(capsys, *arguments, "--out", out, "--skip-bad")
    assert (found["num_tokens"], found["num_bad"], found["top_k"]) == (2, 1, 2)
    assert [layer["name"] for layer in call_json(capsys, "inspect", out)["layers"]] == ["layers.3"]
    assert_refused(
        capsys,
        ["4 MoE layers"],
        *arguments,
        *("--out", tmp_path / "q.safetensors", "--skip-bad", "--model", "tiny"),
    )
    other = tmp_path / "r.safetensors"
    assert_refused(capsys, ["--top-k"], "import", path, "--format", "c2r-pickle", "--out", other)


def test_times_are_of_the_cluster_that_a_plan_was_made_for(capsys, tmp_path):
    profile, out = tmp_path / "profile", tmp_path / "plan"
    clustered_profile(num_layers=1, num_experts=8, top_k=2).save(profile)
    for options, expected in (
        (["--ranks", 4], "h100-8"),  # of another size than that preset
        (["--cluster", "hosts-4-10g"], "hosts-4-10g"),
    ):
        assert call(capsys, "plan", profile, *options, "--out", out, "--force")[0] == 0
        found = call_json(capsys, "traffic", profile, "--plan", out)
        assert found["time"]["cluster"]["name"] == expected
        assert found["time"]["cluster"]["num_ranks"] == 4
    found = call_json(capsys, "traffic", profile, "--plan", out, "--cluster", "hosts-4-100g")
    assert found["time"]["cluster"]["name"] == "hosts-4-100g"


def test_the_cluster_of_a_file_is_known_wherever_its_plan_is(capsys, folder, tmp_path):
    """Its links too, when the file is gone."""
    profile, out, file = folder / "profile.safetensors", tmp_path / "plan", tmp_path / "mine.yaml"
    links = tuple(tuple(map(float, row)) for row in ([0, 1, 9, 9], [1, 0, 9, 9], [9] * 4, [9] * 4))
    mine = replace(find_cluster("hosts-4-10g"), name="mine", link_gigabytes=links)
    mine.save(file)
    assert call(capsys, "plan", profile, "--cluster", file, "--out", out)[0] == 0
    file.unlink()
    place = "mine (4 ranks on 4 nodes)"
    assert place in " ".join(call(capsys, "traffic", profile, "--plan", out)[1].split())
    found = call_json(capsys, "traffic", profile, "--plan", out)
    assert found["time"]["cluster"]["link_gigabytes"] == [list(row) for row in links]
    cutting = ["--tokens", 512, "--seq-len", 256, "--batch-size", 1]
    measured = call(capsys, "measure", "tiny", "--plan", out, *cutting)[1]
    assert place in " ".join(measured.split())
    estimated = call(capsys, "estimate", profile, "--plan", out)[1]
    assert place in " ".join(estimated.split())
    report = call_json(capsys, "report", profile, out, "--out", tmp_path / "report.html")
    assert place in report["verdict"]["basis"]


def test_permute_and_undo(capsys, folder, tmp_path):
    from c2r.assets import tiny_folder

    plan, out, undone = folder / "plan.safetensors", tmp_path / "permuted", tmp_path / "undone"
    found = call_json(capsys, "permute", "tiny", "--plan", plan, "--out", out)
    assert (found["num_layers"], found["is_undone"]) == (4, False)
    assert_refused(capsys, ["exists", "--force"], "permute", "tiny", "--plan", plan, "--out", out)
    assert_refused(
        capsys, ["leave --plan out"], "permute", out, "--undo", "--plan", plan, "--out", undone
    )
    assert call_json(capsys, "permute", out, "--undo", "--out", undone)["is_undone"]
    for path in tiny_folder().glob("model*.safetensors"):
        assert (undone / path.name).read_bytes() == path.read_bytes()
        assert (out / path.name).read_bytes() != path.read_bytes()


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm", "vllm-ascend", "megatron"])
def test_export(capsys, folder, tmp_path, engine):
    arguments = ["export", "--plan", folder / "plan.safetensors", "--format", engine]
    path = tmp_path / "plan.json"
    found = call_json(capsys, *arguments, "--model", "tiny", "--out", path)
    assert path.stat().st_size > 0 and "placement saves no row" in found["note"]
    (line,) = found["launch"]
    assert (str(path) in line) == (engine != "vllm")
    assert (found["permute"] is None) == found["loads_placement"]
    assert_refused(capsys, ["cannot write"], *arguments, "--out", tmp_path / "no" / "plan.json")


def test_errors_of_the_library_are_told_with_the_flag(capsys, tmp_path):
    np.savez(tmp_path / "t.npz", layer_0=np.array([[0, 1]]))
    arguments = ["import", tmp_path / "t.npz", "--format", "npz", "--out", tmp_path / "p"]
    assert_refused(capsys, ["model=None", "(model is --model or --num-experts)"], *arguments)
    assert call(capsys, *arguments, "--num-experts", 4)[0] == 0
    matrix = np.ones((1, 6, 6), dtype=int)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(matrix))
    arguments = ["import", tmp_path / "c.pkl", "--format", "c2r-pickle", "--out", tmp_path / "q"]
    assert_refused(capsys, ["top_k=None", "(top_k is --top-k)"], *arguments)
    assert call(capsys, *arguments, "--top-k", 3)[0] == 0
    words = ['objective="pairs"', "(objective is --objective)"]
    assert_refused(capsys, words, "plan", tmp_path / "q", "--ranks", 2, "--json")


def test_apply_writes_a_folder_that_carries_its_plan(capsys, folder, tmp_path):
    import c2r
    from c2r.adapters.huggingface import applied_plan

    out = tmp_path / "constrained"
    plan = folder / "plan.safetensors"
    found = call_json(capsys, "apply", "tiny", "--plan", plan, "--out", out)
    model = c2r.from_pretrained(out)
    assert applied_plan(model).fingerprint == found["plan_fingerprint"]
    profile = tmp_path / "p.safetensors"
    arguments = ["--tokens", "2000", "--seq-len", "256", "--out", profile, "--dtype", "float32"]
    assert call(capsys, "profile", out, *arguments)[0] == 0
    counted = CollaborationProfile.load(profile).layers[0]
    lists = c2r.Plan.load(plan).layers[0].partners
    sets, _ = counted.routing_sets()
    for row in sets.tolist():  # some member has all the others among its partners
        assert any(set(row) - {i} <= set(lists[i].tolist()) for i in row)
    assert_refused(capsys, ["exists", "--force"], "apply", "tiny", "--plan", plan, "--out", out)


def test_doctor(capsys, monkeypatch):
    found = call_json(capsys, "doctor")
    assert {"versions", "devices", "backends"} <= set(found)
    for name in OPS_WITH_KERNELS:
        assert found["backends"][name].startswith(("reference: ", "triton: "))
    assert call(capsys, "doctor")[0] == 0
    monkeypatch.setenv("C2R_BACKEND", "cutlass")
    assert_refused(capsys, ["C2R_BACKEND=cutlass is no backend"], "doctor")


def test_mistakes_with_files(capsys, folder, tmp_path):
    profile, plan = folder / "profile.safetensors", folder / "plan.safetensors"
    missing = tmp_path / "none.safetensors"
    assert_refused(capsys, ["No such file", "none"], "inspect", missing)
    assert_refused(capsys, ["holds a plan, not a profile"], "plan", plan, "--ranks", 2, "--json")
    assert_refused(capsys, ["holds a profile, not a plan"], "traffic", profile, "--plan", profile)
    truncated = tmp_path / "t.safetensors"
    truncated.write_bytes(profile.read_bytes()[:1000])
    assert_refused(capsys, ["truncated"], "inspect", truncated)
    foreign = tmp_path / "f.safetensors"
    save_file({"a": np.zeros(2)}, foreign)
    assert_refused(capsys, ["c2r did not write"], "inspect", foreign)
    nowhere = tmp_path / "no" / "p.safetensors"
    assert_refused(capsys, ["choose a folder"], "plan", profile, "--ranks", 2, "--out", nowhere)


def test_mistakes_with_numbers(capsys, folder):
    profile = folder / "profile.safetensors"
    for arguments, words in [
        (["--ranks", 33], ["33", "32"]),
        (["--ranks", 0], ["0"]),
        (["--ranks", 4, "--nodes", 3], ["4 ranks", "3 nodes"]),
        (["--ranks", 4, "--top-t", 2], ["T = 2", "from 3 to 31"]),
        (["--ranks", 4, "--top-t", 32], ["T = 32", "from 3 to 31"]),
        (["--ranks", 4, "--top-t", "many"], ["--top-t many"]),
        (["--ranks", 4, "--top-t", "8,8"], ["2", "4 layers"]),
        (["--ranks", 4, "--objective", "triples"], ["triples"]),
    ]:
        assert_refused(capsys, words, "plan", profile, *arguments, "--json")
    assert_refused(capsys, ["--out"], "plan", profile, "--ranks", 2)


def test_mistakes_with_models_and_texts(capsys, folder, tmp_path):
    out = ["--out", tmp_path / "p.safetensors"]
    assert_refused(capsys, ["nowhere"], "profile", tmp_path / "nowhere", *out)
    missing = tmp_path / "none.txt"
    assert_refused(capsys, ["none.txt"], "profile", "tiny", "--text", missing, *out)
    (tmp_path / "empty.txt").write_text("")
    assert_refused(capsys, ["empty"], "profile", "tiny", "--text", tmp_path / "empty.txt", *out)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert_refused(capsys, ["UTF-8"], "profile", "tiny", "--text", tmp_path / "binary.txt", *out)
    assert_refused(capsys, ["tokens -1"], "profile", "tiny", "--tokens", -1, *out)
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_plan_for_another_model(capsys, tmp_path):
    matrix = np.ones((2, 6, 6), dtype=int)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(matrix))
    profile, plan = tmp_path / "p.safetensors", tmp_path / "plan.safetensors"
    arguments = [tmp_path / "c.pkl", "--format", "c2r-pickle", "--top-k", 2, "--out", profile]
    assert call(capsys, "import", *arguments)[0] == 0
    assert call(capsys, "plan", profile, "--ranks", 2, "--out", plan)[0] == 0
    out = tmp_path / "out"
    assert_refused(capsys, ["2 layers", "4 layers"], "apply", "tiny", "--plan", plan, "--out", out)
    assert not out.exists()


def test_wrong_flags(capsys):
    assert_refused(capsys, ["--nonsense", "--help"], "inspect", "--nonsense")
    assert_refused(capsys, ["No such command"], "frobnicate")
    assert call(capsys, "--help")[0] == 0
    for command in app.registered_commands:
        status, out, _ = call(capsys, command.name, "--help")
        assert status == 0 and "--json" in out


def commands_of(group, *path):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, *path, name)
        else:
            yield " ".join([*path, name]), command


COMMANDS = dict(commands_of(get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_an_example_that_the_command_takes(name, capsys):
    status, out, _ = call(capsys, *name.split(), "--help")
    last = out[out.rindex("  Example: ") :].replace("\\\n", "").strip()
    found = re.fullmatch(rf"Example: (c2r|torchrun .* -m c2r) {name}( .*)", last)
    assert status == 0 and found, last
    COMMANDS[name].make_context(name, shlex.split(found[2]))


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_have_one_notation(name):
    for option in COMMANDS[name].params:
        assert not re.search(r"\bdefault\b|\]$", option.help or "", re.IGNORECASE), option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_fits_80_columns_in_groups(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call(capsys, *name.split(), "-h")
    assert (status, out) == call(capsys, *name.split(), "--help")[:2]
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    headings = re.findall(r"^(\w[\w ]*):$", out, re.MULTILINE)
    assert headings[-1] == "Output" and "--quiet" in out.rpartition("Output:")[2]
    assert "list[" not in out and "[default: (" not in out


def test_the_version_is_that_of_the_package(capsys):
    assert call(capsys, "--version") == (0, f"c2r {version('c2r-moe')}\n", "")


def test_python_runs_the_package_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "c2r", "frobnicate"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'frobnicate'" in done.stderr


def test_help_does_not_import_torch():
    code = (
        "import sys; from c2r.cli import run_command as run; run(['--help']); run(['--version']); "
        "[run([name, '--help']) for name in ('plan', 'import', 'export', 'profile')];"
        "import c2r; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_without_arguments_shows_the_help(capsys):
    status, out, _ = call(capsys)
    assert status == 0 and "Commands:" in out


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(capsys, tmp_path):
    for missing in ("nothing", tmp_path / "nothing", "./no/thing"):
        assert_refused(
            capsys, [str(missing), "no model folder"], "profile", missing, "--out", tmp_path / "p"
        )
