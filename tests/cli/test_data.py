"""Commands that read conversations, and what they say of the text that they are given."""

import json

import pytest

from c2r.adapters.huggingface import load_tokenizer
from c2r.assets import tiny_folder
from c2r.cli import run_command
from c2r.profiling import CollaborationProfile

CHAT = [
    {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2" * i}]}
    for i in range(1, 9)
]


@pytest.fixture
def chat(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in CHAT))
    return path


def call(capsys, *arguments):
    capsys.readouterr()
    status = run_command([str(argument) for argument in arguments])
    return status, capsys.readouterr().err


def test_a_profile_of_conversations_counts_their_rendered_tokens(capsys, chat, tmp_path):
    out = tmp_path / "p.safetensors"
    status, err = call(capsys, "profile", "tiny", "--data", chat, "--out", out)
    assert status == 0, err
    rendered = "### User:\n1+1?\n\n### Assistant:\n\n\n"
    tokenizer = load_tokenizer(tiny_folder())
    num_tokens = sum(len(tokenizer(rendered)["input_ids"]) + i for i in range(1, 9))
    found = CollaborationProfile.load(out)
    assert found.num_tokens == num_tokens
    assert "embedded text" not in err and "plain text" not in err


def test_data_is_checked_before_a_model_is_loaded(capsys, chat, tmp_path):
    out = tmp_path / "p.safetensors"
    for arguments, words in [
        (["--data", tmp_path / "none.jsonl"], "none.jsonl: no such file"),
        (["--data", chat, "--text", chat], "--text and --data: give one"),
    ]:
        status, err = call(capsys, "profile", "no/model", *arguments, "--out", out)
        assert status == 2 and words in err and len(err.splitlines()) == 1


def test_a_word_on_text_that_may_surprise(capsys, chat, tmp_path):
    few = ["--tokens", "64", "--seq-len", "32"]
    _, err = call(capsys, "profile", "tiny", *few, "--out", tmp_path / "a.safetensors")
    assert "no --text: the embedded text is used, 472 kB of Python" in err
    _, err = call(
        capsys, "profile", "tiny", *few, "--text", chat, "--out", tmp_path / "b.safetensors"
    )
    assert "chat.jsonl is read as plain text, its JSON included; --data reads what it says" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "--plan", "none.safetensors"], "cannot read none.safetensors"),
        (["measure", "--text", "none.txt"], "cannot read text none.txt"),
        (["sweep", "--ranks", "4", "--policy", "none"], "policy 'none'"),
        (["optimize", "--cluster", "none"], "there is no cluster none"),
        (["apply", "--plan", "none.safetensors", "--out", "x"], "cannot read none.safetensors"),
    ],
)
def test_inputs_are_checked_before_a_model_is_loaded(
    capsys, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    status, err = call(capsys, arguments[0], "no/model", *arguments[1:])
    line = err.splitlines()[-1]
    assert status == 2 and words in line and "no/model" not in err
    assert not list(tmp_path.iterdir())
