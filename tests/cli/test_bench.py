"""`c2r bench`: what it refuses before anything starts. A real run is in tests/timing."""

import pytest

from c2r.cli import run_command


@pytest.fixture
def launched(monkeypatch):
    """The environment of torchrun, first of four ranks on two nodes."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert run_command(["bench", "parallel", *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line


def test_one_process_has_nothing_to_send(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "torchrun --nproc-per-node 4" in refusal(capsys)


def test_a_policy_needs_a_strength(capsys, launched):
    assert "budgeted=0.1" in refusal(capsys, "--policy", "budgeted")
    assert "c2r=few" in refusal(capsys, "--policy", "c2r=few")
    assert "'c2r:8' is unknown" in refusal(capsys, "--policy", "c2r:8")


def test_only_types_that_the_products_take(capsys, launched):
    assert "float16" in refusal(capsys, "--dtype", "float16")


def test_counts_must_be_positive(capsys, launched):
    assert "--rounds" in refusal(capsys, "--rounds", "0")
    assert "--tokens" in refusal(capsys, "--tokens", "0")
    assert "--chunks 0: write a number from 1, or auto" in refusal(capsys, "--chunks", "0")


def test_a_device_is_real_or_has_a_rate(capsys, launched):
    assert "choose real or emulated" in refusal(capsys, "--device", "fast")
    assert "--cluster or --rows-per-second" in refusal(capsys, "--device", "emulated")
    assert "add --device emulated" in refusal(capsys, "--rows-per-second", "1000")
    assert "there is no cluster moon" in refusal(capsys, "--cluster", "moon")


def test_replicas_are_planned_when_the_routing_is_recorded(capsys, launched):
    assert "--replicas" in refusal(capsys, "--replicas", "-1")
    given = ("--recording", "mine.safetensors", "--replicas", "2")
    assert "mine.safetensors holds the replicas" in refusal(capsys, *given)


def refusal_of_cluster(capsys, *arguments):
    capsys.readouterr()
    assert run_command(["bench", "cluster", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_cluster_needs_ranks_and_sizes(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "torchrun --nproc-per-node 8" in refusal_of_cluster(capsys)
    assert "float8" in refusal_of_cluster(capsys, "--dtype", "float8")
    assert "4096 alone tells no rate" in refusal_of_cluster(capsys, "--size", "4096")
    assert "--ranks" in refusal_of_cluster(capsys, "--ranks", "1")


def test_ranks_are_those_of_torchrun(capsys, launched):
    assert "torchrun started 4" in refusal_of_cluster(capsys, "--ranks", "2")
