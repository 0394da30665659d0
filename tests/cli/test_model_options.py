"""Where a command's model runs: one set of options, chosen before loading and told after it."""

import json
from types import SimpleNamespace

import pytest
import torch
from typer.main import get_command

from c2r.adapters.huggingface import placement
from c2r.assets import tiny_folder
from c2r.cli import app, run_command
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions
from c2r.errors import InputError

RUN_A_MODEL = (
    *("profile", "sweep", "optimize", "apply", "finetune", "run", "measure", "evaluate"),
    "serve-check",
)
OPTIONS = {
    *("--device", "--device-map", "--offload-folder", "--dtype", "--attn-implementation"),
    *("--revision", "--trust-remote-code"),
}
SHORT = ["--tokens", "300", "--seq-len", "64"]


def profile(capsys, tmp_path, *arguments):
    out = str(tmp_path / "profile.safetensors")
    status = run_command(["profile", "tiny", "--out", out, *SHORT, *arguments])
    return status, capsys.readouterr().err


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs with 1 GB of free memory each, as torch and accelerate tell of them."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    memory = {0: 10**9, 1: 10**9, "cpu": 64 * 10**9}
    monkeypatch.setattr(placement, "get_max_memory", lambda: memory)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return SimpleNamespace(memory=memory, current=current)


@pytest.mark.parametrize("name", RUN_A_MODEL)
def test_every_command_that_runs_a_model_has_the_same_options(name):
    command = get_command(app).commands[name]
    given = {option: entry for entry in command.params for option in entry.opts}
    assert given.keys() >= OPTIONS
    others = get_command(app).commands["profile"].params
    for entry in others:
        if set(entry.opts) & OPTIONS:
            assert given[entry.opts[0]].help == entry.help


def test_a_gpu_is_taken_where_there_is_one(gpus):
    found = DEFAULT_LOADING.placement(str(tiny_folder()), None)
    assert found == {"device_map": {"": torch.device("cuda", 0)}}
    assert ModelOptions(device="cpu").placement(str(tiny_folder()), None) == {}
    chosen = ModelOptions(device="cuda:1").placement(str(tiny_folder()), None)
    assert chosen == {"device_map": {"": torch.device("cuda", 1)}}


def test_a_model_that_does_not_fit_is_spread(gpus, capsys, tmp_path):
    size = placement.weight_bytes(str(tiny_folder()), torch.float32)
    gpus.memory[0] = int(size / placement._SHARE) + 1
    assert DEFAULT_LOADING.placement(str(tiny_folder()), torch.float32).keys() == {"device_map"}
    gpus.memory[0] -= 2
    found = ModelOptions(offload_folder=tmp_path).placement(str(tiny_folder()), torch.float32)
    assert found == {"device_map": "auto", "offload_folder": tmp_path}
    assert "do not fit on cuda:0: --device-map auto" in capsys.readouterr().err
    assert DEFAULT_LOADING.placement(str(tiny_folder()), torch.bfloat16).keys() == {"device_map"}


def test_weights_are_counted_in_the_type_that_they_are_loaded_in():
    numbers = sum(p.numel() for p in placement.skeleton_of(tiny_folder()).parameters())
    assert placement.weight_bytes(str(tiny_folder()), torch.float32) == 4 * numbers
    assert placement.weight_bytes(str(tiny_folder()), None) == 2 * numbers  # bfloat16


def test_each_process_has_its_own_device_and_exchanges_by_nccl(gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert DEFAULT_LOADING.backend() == "cpu:gloo,cuda:nccl"
    assert gpus.current == [torch.device("cuda", 1)]
    gpus.memory[1] = 1  # a rank never takes the devices of others
    found = DEFAULT_LOADING.placement(str(tiny_folder()), None)
    assert found == {"device_map": {"": torch.device("cuda", 1)}}
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 2 of this machine has no device"):
        DEFAULT_LOADING.backend()
    assert ModelOptions(device="cpu").backend() == "gloo"


def test_where_and_in_what_it_runs_is_told_in_one_line(capsys, tmp_path):
    status, err = profile(capsys, tmp_path, "--attn-implementation", "eager")
    assert status == 0 and err.count("runs on") == 1
    assert "tiny runs on cpu in float32\n" in err
    assert "tiny runs on cpu in bfloat16\n" in profile(capsys, tmp_path, "--dtype", "bfloat16")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda"], "there is no device cuda here"),
        (["--device", "tape"], "--device tape is unknown"),
        (["--device", "cpu", "--device-map", "auto"], "give one"),
        (["--device-map", "everywhere"], "--device-map everywhere is unknown"),
        (["--device-map", "[1]"], "--device-map [1] is unknown"),
        (["--dtype", "int4"], "--dtype int4 is unknown"),
        (["--attn-implementation", "spiral"], "spiral"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, tmp_path, arguments, words):
    status, err = profile(capsys, tmp_path, *arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("c2r: ")]
    assert status == 2 and words in line and not (tmp_path / "profile.safetensors").exists()


def test_parts_and_their_devices_are_told():
    parts = {"model.layers.0": 0, "model.layers.1": 0, "lm_head": "cpu", "model.norm": "disk"}
    model = SimpleNamespace(hf_device_map=parts, dtype=torch.bfloat16)
    words = "cuda:0 (2 parts) and cpu (1 parts) and disk (1 parts) in bfloat16"
    assert placement.describe_placement(model) == words


def test_a_device_map_may_be_written_as_json():
    text = json.dumps({"": "cpu"})
    assert placement.read_device_map(text) == {"": "cpu"}
