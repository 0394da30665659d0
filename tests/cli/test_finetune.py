"""`c2r finetune` as a user starts it."""

import json
import os
import signal
from dataclasses import fields

import pytest
import torch
import yaml
from typer.main import get_command

import c2r
from c2r.adapters.huggingface import load_tokenizer
from c2r.cli import app, run_command
from c2r.plans.model_folder import PLAN_FILE
from c2r.training import FinetuneSettings, Progress
from tests.training.material import plan_of, text_bytes, tiny

FEW = ["--steps", "3", "--batch-size", "4", "--seq-len", "64", "--learning-rate", "0.001"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    plan_of(tiny()).save(folder / "plan.safetensors")
    (folder / "text.txt").write_bytes(text_bytes()[:4000])
    pair = {"instruction": "Say hello.", "output": "Hello there."}
    (folder / "chat.jsonl").write_text(json.dumps(pair) + "\n")
    return folder


def call(capsys, folder, out, *options, data="text.txt"):
    capsys.readouterr()
    arguments = ["--plan", folder / "plan.safetensors", "--data", folder / data, "--out", out]
    status = run_command(["finetune", "tiny", *map(str, arguments), *FEW, *options])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_tells_what_it_does_and_leaves_a_constrained_model(capsys, folder, tmp_path):
    more = ["--data", str(folder / "chat.jsonl"), "--kl-weight", "0.1", "--log-every", "1"]
    status, out, err = call(capsys, folder, tmp_path / "out", "--json", *more)
    assert status == 0, err
    assert "64 pieces in 64 windows of up to 64 tokens" in err
    assert "3,656,832 of 3,656,832 parameters train for 3 steps of 4 windows" in err
    assert f"c2r.from_pretrained('{tmp_path / 'out'}')" in err
    found = json.loads(out)
    plain, before, after = found["held_out"].values()
    assert plain["copies"] > before["copies"] > 1 and after["loss"] < before["loss"]
    assert [entry["step"] for entry in found["log"][:3]] == [1, 2, 3]
    assert {"lm_loss", "kl", "copies_per_token"} <= found["log"][0].keys()
    model = c2r.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert c2r.constraint_report(model)
    assert load_tokenizer(tmp_path / "out")
    events = (tmp_path / "out" / "tensorboard").iterdir()
    assert any(b"copies_per_token" in path.read_bytes() for path in events)


def test_a_table_for_people_and_a_control(capsys, folder, tmp_path):
    status, out, err = call(capsys, folder, tmp_path / "out", "--control", "--mode", "router")
    assert status == 0, err
    assert "16,384 of 3,656,832 parameters train" in err
    assert "after, plain top-k" in out and "Held-out data" in out
    status, again, err = call(capsys, folder, tmp_path / "out", "--control", "--mode", "router")
    assert (status, again) == (0, out) and "had been finished after 3 steps" in err
    status, _, err = call(capsys, folder, tmp_path / "out", "--mode", "router")
    assert status == 2 and "replace it with --force" in err and "windows" not in err
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    again = ["--control", "--mode", "router", "--seed", "1", "--force", "--quiet"]
    status, out, err = call(capsys, folder, tmp_path / "out", *again)
    assert status == 0 and "Held-out data" in out and err == ""
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    record = yaml.safe_load((tmp_path / "out.run.yaml").read_text())
    assert (record["command"], record["seed"], record["steps"]) == ("finetune", 1, 3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # asked by PEFT
def test_an_adapter_is_left_that_peft_loads(capsys, folder, tmp_path):
    from peft import PeftModel

    out = tmp_path / "out"
    assert call(capsys, folder, out, "--mode", "lora", "--lora-rank", "4")[0] == 0
    adapted = PeftModel.from_pretrained(tiny(), str(out / "adapter")).merge_and_unload()
    merged = c2r.from_pretrained(out, dtype=torch.float32).state_dict()
    torch.testing.assert_close(dict(adapted.state_dict()), dict(merged))
    plan = c2r.Plan.load(out / "adapter" / PLAN_FILE)
    c2r.apply(adapted, plan, strict=False)


def test_ctrl_c_says_how_to_go_on(capsys, folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", interrupt)
        status, out, err = call(capsys, folder, tmp_path / "out")
    assert (status, out) == (130, "")
    assert f"the work is in {tmp_path / 'out'}.partial; the same command resumes" in err
    status, _, err = call(capsys, folder, tmp_path / "out")
    assert status == 0 and "going on from step 1" in err


WITHOUT_OPTION = {"accumulation", "max_grad_norm", "report_to"}  # two are computed, one is fixed


def test_the_defaults_that_help_tells_are_those_of_the_settings():
    options = {option.name: option for option in get_command(app).commands["finetune"].params}
    settings = {field.name: field.default for field in fields(FinetuneSettings)}
    assert settings.keys() - options.keys() == WITHOUT_OPTION
    told = {}
    for name in settings.keys() & options.keys():
        if isinstance(options[name].show_default, str):
            told[name] = options[name].show_default
            assert options[name].default is None, "a preset may still say otherwise"
    assert told.pop("aux_weight") == "the model's, if it has one" and settings["aux_weight"] is None
    assert told.pop("bf16") == "no-bf16" and settings["bf16"] is False
    assert told.pop("mode") == settings["mode"]
    assert {name: float(text) for name, text in told.items()} == {n: settings[n] for n in told}
    assert len(told) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "paper"], "choose paper-qwen, paper-llama"),
        (["--mode", "half"], "choose full, router, lora"),
        (["--expert-parallel"], "torchrun --nproc-per-node 4"),
        (["--fsdp"], "it needs mode full and expert_parallel"),
        (["--eval-share", "1"], "cannot be split into training and held-out"),
        (["--overlong", "keep"], "choose truncate or drop"),
        (["--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, folder, tmp_path, options, words):
    status, out, err = call(capsys, folder, tmp_path / "out", *options)
    lines = [line for line in err.splitlines() if line.startswith("c2r: ")]
    assert (status, out, len(lines)) == (2, "", 1) and words in lines[0]
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_used(capsys, folder, tmp_path):
    (folder / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\nnot json\n')
    status, _, err = call(capsys, folder, tmp_path / "out", data="bad.jsonl")
    assert status == 2 and "line 2 of bad.jsonl is not JSON" in err


def test_only_the_last_answers_are_learnt_and_ignored_fields_are_told(capsys, folder, tmp_path):
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 40, "id": 1}]
    (folder / "turns.jsonl").write_text(json.dumps({"messages": turn * 2}) + "\n" * 3)
    line = (folder / "turns.jsonl").read_text().strip()
    (folder / "turns.jsonl").write_text(f"{line}\n{line}\n")
    more = ["--eval-data", str(folder / "text.txt"), "--seq-len", "256", "--json"]
    learnt = {}
    for answers in ("all", "last"):
        options = [*more, "--answers", answers, "--steps", "1", "--log-every", "1"]
        out = tmp_path / answers
        status, printed, err = call(capsys, folder, out, *options, data="turns.jsonl")
        assert status == 0, err
        assert "left out, for the chat template does not use them: id" in err
        learnt[answers] = json.loads(printed)["log"][0]
    assert learnt["all"]["loss"] != learnt["last"]["loss"]
