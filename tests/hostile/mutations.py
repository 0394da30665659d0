"""Damaged files of every kind that commands read, and what a command may do with one."""

import io
import json
import pickle
import random
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from c2r.assets import tiny_folder
from c2r.cli import run_command
from c2r.errors import C2RError
from c2r.planning import make_plan, placing
from c2r.plans import ClusterTopology
from c2r.prediction import find_cluster
from c2r.profiling import IdProfileBuilder
from c2r.results import Measurement, SweepResult
from c2r.sweeps import SweepRequest
from c2r.timing import Placing, Recording, read_routing, record_file
from tests.reporting.profiles import benchmark_document

VALUES = (b"null", b"-1", b"1e400", b"9" * 30, b"[" * 5000, b'"\\u001b]0;x"', b"NaN", b"{}", b"0")


PLACING = Placing(topology=ClusterTopology(num_ranks=2), max_load=2.0)
DOORS = {
    "load a recording": Recording.load,
    "record a file": lambda path: record_file(read_routing(Path(path)), 50, 100, PLACING),
}
"""What `c2r bench parallel` reads after its ranks have met."""


def originals(folder):
    """Writes one good file of each kind; gives their names and the command that reads each."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(8)[:2] for _ in range(200)])
    builder = IdProfileBuilder(8)
    builder.update(0, ids)
    profile = builder.build({0: "model.layers.0.mlp.gate"})
    profile.save(folder / "profile.safetensors")
    make_plan(profile, num_ranks=2).save(folder / "plan.safetensors")
    find_cluster("h100-8").of_size(2, 1).save(folder / "cluster.yaml")
    (folder / "run.yaml").write_text("command: plan\nranks: 2\npolicy: priced=0.1\nseed: 0\n")
    _write_traces(folder, profile, ids)
    _write_documents(folder, profile)
    good = str(folder / "profile.safetensors")
    out = ["--out", str(folder / "out.safetensors")]
    return {
        "profile.safetensors": [
            ["inspect", "FILE"],
            ["plan", "FILE", "--ranks", "2", *out],
        ],
        "plan.safetensors": [
            ["inspect", "FILE"],
            ["traffic", good, "--plan", "FILE"],
            ["export", "--plan", "FILE", "--format", "sglang", *out],
        ],
        "trace.npz": [["import", "FILE", "--format", "npz", "--num-experts", "8", *out]],
        "routed.npy": [["import", "FILE", "--format", "vllm-routed", "--num-experts", "8", *out]],
        "pairs.pkl": [["import", "FILE", "--format", "c2r-pickle", "--top-k", "2", *out]],
        "dump.pt": [["import", "FILE", "--format", "sglang-per-token", *out]],
        "trace.jsonl": [
            ["import", "FILE", "--format", "megatron-trace", "--num-experts", "8", *out]
        ],
        "result.json": [["evaluate", "--compare", "FILE", "FILE"]],
        "sweep.json": [
            ["plan", good, "--ranks", "2", "--sweep", "FILE", "--max-loss-increase", "0.1", *out],
            ["report", "FILE", *out],
        ],
        "measured.json": [["report", "FILE", *out]],
        "bench.json": [["report", "FILE", *out]],
        "run.yaml": [["plan", good, "--config", "FILE", *out]],
        "trainer_state.json": [["report", "FILE", *out]],
        "cluster.yaml": [
            ["plan", good, "--cluster", "FILE", *out],
            [
                "estimate",
                "--scale",
                "--experts",
                "8",
                "--top-k",
                "2",
                "--max-ranks",
                "8",
                "--cluster",
                "FILE",
            ],
        ],
        "routing.npz": [["record a file", "FILE"]],
        "recording": [["load a recording", "FILE"]],
    }


def _write_traces(folder, profile, ids):
    np.savez(folder / "trace.npz", layer_0=ids)
    np.save(folder / "routed.npy", ids[:, None])
    pairs = profile.layers[0].coactivation[None]
    (folder / "pairs.pkl").write_bytes(pickle.dumps(pairs, protocol=4))
    dump = {
        "records": [{"topk_ids_of_layer": torch.from_numpy(ids)[None]}],
        "last_physical_to_logical_map": torch.arange(8)[None],
    }
    torch.save(dump, folder / "dump.pt")
    line = {"layer": 0, "num_tokens": 200, "topk": 2, "top_indices": ids.tolist()}
    (folder / "trace.jsonl").write_text(json.dumps(line) + "\n")
    lengths = np.array([50, 60, 90])
    np.savez(folder / "routing.npz", experts=ids[:, None], lengths=lengths)
    record_file(read_routing(folder / "routing.npz"), 50, 100, PLACING).save(folder / "recording")


def _write_documents(folder, profile):
    item = {
        "name": "t", "metric": "acc", "num_shots": 0, "version": "1", "num_left_out": 0,
        "num_truncated": 0, "ids": ["a"], "correct": [True], "loglikelihoods": [[0.0]],
    }  # fmt: skip
    routing = {"copies": 1.0, "rank_load_max_over_mean": 1.0}
    result = {"kind": "task evaluation", "num_ranks": 2, "routing": routing, "tasks": [item]}
    request = asdict(SweepRequest(num_ranks=2, policies=("priced=0.1",)))
    points = [
        measurement(
            policy,
            strength,
            make_plan(
                profile, policy=policy, strength=strength, **placing(request, profile)
            ).fingerprint,
        )
        for policy, strength in (("top_k", 0.0), ("priced", 0.1))
    ]
    sweep = SweepResult(request=request, baseline=points[0], points=(points[1],))
    sweep.save(folder / "sweep.json")
    log = [{"step": step, "loss": 2.0 - step, "eval_loss": 2.0} for step in (0, 1)]
    documents = {
        "result": result,
        "measured": points[0].to_json(),
        "bench": benchmark_document(),
        "trainer_state": {"log_history": log, "global_step": 1},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))


def models(folder):
    """As `originals`: files of a model's folder, which stands two levels above the last of them."""
    model, permuted = folder / "model", folder / "permuted"
    shutil.copytree(tiny_folder(), model)
    with safe_open(model / "model.safetensors", "numpy") as file:
        names = dict.fromkeys(file.keys(), "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    profile, plan = str(folder / "tiny.profile"), str(folder / "tiny.plan")
    cut = ["--tokens", "512", "--seq-len", "128"]
    assert run_command(["profile", str(model), *cut, "--out", profile]) == 0
    assert run_command(["plan", profile, "--ranks", "4", "--out", plan]) == 0
    permute = ["permute", str(model), "--plan", plan, "--out"]
    assert run_command([*permute, str(permuted)]) == 0
    out = str(folder / "out.safetensors")
    routed = {"0.token_ids": np.arange(3, 12), "0.routed_experts": np.arange(144).reshape(9, 4, 4)}
    routed["0.routed_experts"] %= 32
    np.savez(folder / "routed.npz", **routed)
    (folder / "text.txt").write_text("The rank that holds an expert computes it. " * 50)
    sweep = folder / "part.json"
    swept = ["sweep", "tiny", "--ranks", "2", "--policy", "priced=0.1", *cut, "--out"]
    assert run_command([*swept, str(sweep)]) == 0
    return {
        "routed.npz": [["serve-check", str(model), "--routed", "FILE", "--other-sets", "1"]],
        "text.txt": [["profile", "tiny", "--text", "FILE", *cut, "--out", out]],
        "part.json": [[*swept, "FILE"]],
        "model/config.json": [[*permute, out]],
        "model/model.safetensors.index.json": [[*permute, out]],
        "permuted/c2r/permutation.safetensors": [
            ["permute", str(permuted), "--undo", "--out", out]
        ],
    }


def measurement(policy, strength, fingerprint):
    """One that a sweep could have made."""
    names = (
        "loss", "perplexity", "kl", "top1_agreement", "copies", "copies_in_order",
        "remote_copies", "node_copies", "rank_load_max_over_mean", "active_experts_per_rank",
    )  # fmt: skip
    return Measurement(
        policy=policy, strength=strength, num_tokens=100, num_ranks=2, plan_fingerprint=fingerprint,
        loss_increase=0.0, loss_increase_interval=(0.0, 0.0), **dict.fromkeys(names, 1.0),
    )  # fmt: skip


def place(folder, kind):
    """Where a damaged file of a kind is put: beside the good one, or in its place in a folder."""
    return folder / (kind if "/" in kind else f"damaged.{kind}")


def mutate(content, rng: random.Random):
    """`content` with bytes flipped, cut or repeated, or a number or word replaced.

    Of an archive of arrays half of the time one array, which its checksum then does not tell.
    """
    if content.startswith(b"PK") and b".npy" in content and rng.random() < 0.5:
        return _mutate_array(content, rng)
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) or 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 64)]
            case 3:
                del data[at : at + rng.randint(1, 16)]
            case _:
                spots = [i for i, byte in enumerate(data) if byte in b":,["]
                at = rng.choice(spots or [0]) + 1
                end = at
                while end < len(data) and data[end] not in b",}]\n":
                    end += 1
                value = rng.choice(VALUES)
                # Same length: in safetensors the header's length is stated before it.
                fits = len(value) <= end - at and rng.random() < 0.8
                data[at:end] = value.ljust(end - at) if fits else value
    return bytes(data)


def _mutate_array(content, rng):
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    name = rng.choice(sorted(arrays))
    array = arrays[name].copy()
    match rng.randrange(6):
        case 0:
            array.flat[rng.randrange(array.size)] = rng.choice([-1, 2**31, 2**62, 8, 0])
        case 1:
            array = array.astype(rng.choice(["f8", "u1", "i2", "c16", "U3", "?", "m8[s]"]))
        case 2:
            array = array[: rng.randrange(len(array))]
        case 3:
            array = array.reshape(-1) if array.ndim > 1 else array[:, None]
        case 4:
            array = np.concatenate([array, array[: rng.randint(0, 3)]])
        case _:
            array = array[..., :0]
    arrays[name] = array
    if rng.random() < 0.1:
        del arrays[name]
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def run(command):
    """The exit status of a command, or of one of the `DOORS`."""
    if command[0] not in DOORS:
        return run_command(command)
    try:
        DOORS[command[0]](command[1])
    except C2RError as error:
        print(f"c2r: {error}", file=sys.stderr)
        return 2
    return 0


def fault(command, folder):
    """What a command did that it must not: a text; None where it kept the rules."""
    before = {path.name for path in folder.iterdir()}
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = run(command)
    except BaseException as error:  # noqa: BLE001 - every kind is what is looked for
        return f"{type(error).__name__}: {error}"[:300]
    after = {path.name for path in folder.iterdir()}
    said = err.getvalue()
    lines = said.strip().splitlines()
    if status not in (0, 2):
        return f"status {status}"
    if status == 2 and not _is_one_line(lines):
        return f"{len(lines)} lines: {said[:300]}"
    if any(ord(c) < 32 and c != "\n" for c in out.getvalue() + said):
        return "control characters"
    if status == 2 and after != before:
        return f"left {sorted(after - before)}"
    remove_output(folder)
    return None


def _is_one_line(lines):
    """Whether an error is the last line, after a few notes of what was about to be done."""
    told = [line for line in lines if line.startswith("c2r: ")]
    is_noise = any("Warning" in line or "Traceback" in line for line in lines)
    return told == lines[-1:] and len(lines) <= 5 and not is_noise


def remove_output(folder):
    """Removes what a command wrote."""
    for path in folder.glob("out.safetensors*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
