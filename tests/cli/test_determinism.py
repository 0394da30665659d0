"""The same command gives the same bits; with other threads, the same to rounding."""

import json

import pytest
import torch

from c2r.cli import run_command

CUT = ["--tokens", "4096", "--seq-len", "256"]


def made(folder):
    folder.mkdir()
    profile, plan = folder / "profile.safetensors", folder / "plan.safetensors"
    sweep = folder / "sweep.json"
    commands = (
        ["profile", "tiny", *CUT, "--out", profile],
        ["plan", profile, "--ranks", "4", "--policy", "priced=0.1", "--out", plan],
        ["sweep", "tiny", "--ranks", "4", "--policy", "priced=0.1", *CUT, "--out", sweep],
        ["apply", "tiny", "--plan", plan, "--out", folder / "applied"],
        ["permute", "tiny", "--plan", plan, "--out", folder / "permuted"],
    )
    for command in commands:
        assert run_command(list(map(str, command))) == 0
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".run.yaml"):  # they name the folder
            found[str(path.relative_to(folder))] = path.read_bytes()
    document = json.loads(found.pop("sweep.json"))
    del document["seconds"]
    return found, document


def test_twice_the_same_command_gives_the_same_files(tmp_path):
    assert made(tmp_path / "one") == made(tmp_path / "two")


def loss(capsys):
    assert run_command(["measure", "tiny", *CUT, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["loss"]


def test_with_other_threads_the_loss_is_the_same_to_rounding(capsys):
    one = loss(capsys)
    torch.set_num_threads(2)
    try:
        assert loss(capsys) == pytest.approx(one, rel=1e-4)
    finally:
        torch.set_num_threads(1)
