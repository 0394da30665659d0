"""Where a command's model runs: one set of options, chosen before loading and told after it."""

import json
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import dynamic_module_utils
from transformers.integrations import accelerate as accelerate_of_transformers
from typer.main import get_command

from c2r.adapters import huggingface
from c2r.adapters.huggingface import placement, sources
from c2r.assets import tiny_folder
from c2r.cli import app, run_command
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions
from c2r.cli.models import load_model_and_tokenizer
from c2r.errors import InputError
from c2r.profiling import CollaborationProfile
from tests.adapters.huggingface.families import FAMILIES
from tests.cli.test_road import LETTERS, make_tokenizer

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
    assert "tiny runs on cpu in float32, 0.01 GB of weights\n" in err
    _, err = profile(capsys, tmp_path, "--dtype", "bfloat16", "--force")
    assert "tiny runs on cpu in bfloat16, 0.01 GB of weights\n" in err


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
    model = torch.nn.Module()
    model.hf_device_map, model.dtype = parts, torch.bfloat16
    words = "cuda:0 (2 parts) and cpu (1 parts) and disk (1 parts) in bfloat16"
    assert placement.describe_placement(model) == words


def test_a_device_map_may_be_written_as_json():
    text = json.dumps({"": "cpu"})
    assert placement.read_device_map(text) == {"": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, a tokenizer that has one word more than the model, a profile and a plan."""
    folder = tmp_path_factory.mktemp("options")
    model = next(family for family in FAMILIES if family.name == "qwen3_moe").model()
    model.resize_token_embeddings(93)
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "known.txt").write_text("abc defg " * 60)
    (folder / "beyond.txt").write_text(f"abc {LETTERS[-1]} defg " * 60)
    text = ["--text", str(folder / "known.txt"), *SHORT]
    paths = [str(folder / name) for name in ("model", "profile.safetensors", "plan.safetensors")]
    assert run_command(["profile", paths[0], *text, "--out", paths[1]]) == 0
    arguments = ["--ranks", "2", "--policy", "priced=0.1", "--out", paths[2]]
    assert run_command(["plan", paths[1], *arguments]) == 0
    return folder


def command(capsys, folder, name, text, *arguments):
    texts = ["--data" if name == "finetune" else "--text", str(folder / text)]
    plan = [] if name in ("profile", "sweep", "optimize") else ["--plan", str(folder / PLAN)]
    capsys.readouterr()
    status = run_command([name, str(folder / "model"), *plan, *texts, *map(str, arguments)])
    return status, *capsys.readouterr()


PLAN = "plan.safetensors"
BEYOND = {
    "profile": ["--out", "OUT", *SHORT],
    "measure": SHORT,
    "run": SHORT,
    "sweep": ["--ranks", "2", *SHORT, "--policy", "priced=0.1"],
    "finetune": ["--out", "OUT", "--seq-len", "64", "--steps", "1", "--eval-share", "0.2"],
}


@pytest.mark.parametrize("name", BEYOND)
def test_ids_beyond_the_embedding_are_one_line(name, folder, capsys, tmp_path):
    arguments = [tmp_path / "out" if word == "OUT" else word for word in BEYOND[name]]
    status, out, err = command(capsys, folder, name, "beyond.txt", *arguments)
    lines = [line for line in err.splitlines() if line.startswith("c2r: ")]
    assert (status, out, len(lines)) == (2, "", 1), err
    assert "token id 93 is beyond the embedding of qwen3_moe, which has 93 rows" in lines[0]
    assert "Traceback" not in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "parts",
    [
        {"model.layers": "disk", "lm_head": "disk"}
        | dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb"], "cpu"),
        {"": "disk"},
        {"model": "disk", "lm_head": "cpu"},
    ],
    ids=["layers", "all", "all but the head"],
)
def test_figures_are_the_same_from_disk(parts, folder, capsys, tmp_path):
    given = ["--attn-implementation", "eager", "--json", *SHORT]
    _, here, _ = command(capsys, folder, "measure", "known.txt", *given)
    options = ["--device-map", json.dumps(parts), "--offload-folder", tmp_path / "offloaded"]
    status, there, err = command(capsys, folder, "measure", "known.txt", *given, *options)
    assert status == 0 and "disk" in err.split("runs on ")[1].splitlines()[0], err
    ours, theirs = json.loads(here), json.loads(there)
    for name in ("loss", "copies", "kl", "rank_load_max_over_mean"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-5)


def test_what_fits_in_no_memory_is_on_disk(folder, capsys, tmp_path, monkeypatch):
    given = ["--attn-implementation", "eager", "--json", *SHORT]
    _, here, _ = command(capsys, folder, "measure", "known.txt", *given)
    memory = {"cpu": 60_000}  # bytes, of 150,000
    monkeypatch.setattr(placement, "get_max_memory", lambda: memory)
    monkeypatch.setattr(accelerate_of_transformers, "get_balanced_memory", lambda *_, **__: memory)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    status, there, err = command(capsys, folder, "measure", "known.txt", *given)
    assert status == 0 and "do not fit on cpu: --device-map auto" in err
    assert "disk" in err.split("runs on ")[1].splitlines()[0], err
    assert list(tmp_path.glob("c2r-offload-*/*"))
    assert json.loads(there)["loss"] == pytest.approx(json.loads(here)["loss"], rel=1e-5)


def test_what_is_offloaded_is_not_trained(folder, capsys, tmp_path):
    options = ["--device-map", '{"": "disk"}', "--offload-folder", tmp_path / "offloaded"]
    arguments = [*BEYOND["finetune"][2:], "--out", tmp_path / "out", *options]
    status, _, err = command(capsys, folder, "finetune", "known.txt", *arguments)
    assert status == 2 and "offloaded, and cannot be trained" in err


OWN_CODE = """
from transformers import MixtralConfig, MixtralForCausalLM
class OwnConfig(MixtralConfig):
    model_type = "own_moe"
class OwnForCausalLM(MixtralForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_where_it_is_trusted(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", None)  # a question would be an error
    model, out = tmp_path / "own", tmp_path / "profile.safetensors"
    plain = next(family for family in FAMILIES if family.name == "mixtral").model()
    plain.save_pretrained(model)
    save_file(plain.state_dict(), model / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer().save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own_moe", "auto_map": named, "architectures": ["OwnForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(OWN_CODE)
    (tmp_path / "t.txt").write_text("some words " * 60)
    arguments = [
        "profile",
        str(model),
        "--text",
        str(tmp_path / "t.txt"),
        "--out",
        str(out),
        *SHORT,
    ]
    capsys.readouterr()
    assert run_command(arguments) == 2
    told, err = capsys.readouterr()
    assert "--trust-remote-code" in err and told == "" and not out.exists()
    assert run_command([*arguments, "--trust-remote-code"]) == 0
    assert CollaborationProfile.load(out).provenance["request"]["model_type"] == "own_moe"


def test_a_revision_is_that_of_model_and_tokenizer(monkeypatch, tmp_path):
    asked, looked_up = [], []

    def fetch(name, options):
        looked_up.append((name, options["revision"]))
        return tmp_path  # nothing there of a plan

    def load(source, **_):
        asked.append((source.location, source.options["revision"]))
        model = torch.nn.Module()
        model.hf_device_map = {"": "cpu"}
        return model

    monkeypatch.setattr(sources, "_fetch", fetch)
    monkeypatch.setattr(huggingface, "load_model", load)
    monkeypatch.setattr(huggingface, "load_tokenizer", load)
    load_model_and_tokenizer("owner/name", ModelOptions(device="cpu", revision="v2"))
    assert asked == [("owner/name", "v2")] * 2
    assert looked_up == [("owner/name", "v2")]
