"""Ranks of one command that differ, or of which one has an error."""

import pytest

from c2r.cli import run_command
from c2r.cli.processes import num_processes, process_rank
from tests.hostile import kills, lost_ranks


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "inputs"
    kills.inputs(folder)
    (folder / "short.txt").write_text("one line of text")
    (folder / "other.txt").write_text("Another text than that of the others. " * 200)
    return folder


def lines(name, folder, odd=None, everywhere=(), timeout=30, absent=()):
    """What each rank says last, with other options on rank 2, or on all."""
    odd = {2: odd} if odd else {}
    children = lost_ranks.start(name, folder, timeout, odd, everywhere, absent)
    try:
        statuses = [child.wait(120) for child in children]
        assert statuses == [2] * len(children), [child.said for child in children]
        assert not any("Traceback" in child.said for child in children)
        return [child.said.strip().splitlines()[-1] for child in children]
    finally:
        for child in children:
            child.end()


CASES = [
    ("run", ["--tokens", "4096"], "num_tokens of rank 2 differs: 4096 there, 12288 on the others"),
    ("profile", ["--text", "other.txt"], "the text of rank 2 differs"),
    ("finetune", ["--data", "other.txt"], "the data of rank 2 differs"),
    ("finetune", ["--steps", "7"], "num_steps of rank 2 differs: 7 there, 6 on the others"),
    ("bench cluster", ["--rows", "16"], "what is measured of rank 2 differs"),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "odd", "words"), CASES)
def test_ranks_that_differ_say_so_in_the_same_line(inputs, name, odd, words):
    (line,) = set(lines(name, inputs, odd))
    assert words in line


@pytest.mark.distributed
@pytest.mark.parametrize("absent", [0, 2])
def test_a_rank_that_never_comes_is_named_without_torchrun(inputs, absent):
    for line in lines("profile", inputs, timeout=3, absent=(absent,)):
        assert line.startswith(f"c2r: rank {absent} did not come to the start")


@pytest.mark.distributed
def test_an_error_of_one_rank_is_told_by_all(inputs):
    (line,) = set(lines("run", inputs, ["--plan", "missing"]))
    assert line.startswith("c2r: rank 2: cannot read missing")


@pytest.mark.distributed
def test_fewer_batches_than_ranks_is_one_line_on_all(inputs):
    (line,) = set(lines("profile", inputs, everywhere=["--text", "short.txt"]))
    assert "the text gives 1 batches for 4 ranks" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "x"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", ""), ("RANK", "-1"), ("RANK", "7")],
)
def test_an_environment_that_makes_no_sense_is_one_line(monkeypatch, capsys, name, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (process_rank(), num_processes()) == (1, 2)
    monkeypatch.setenv(name, value)
    assert run_command(["profile", "tiny", "--out", "never"]) == 2
    assert f"{name}={value}" in capsys.readouterr().err
