"""The examples do what they say, one after the other in one folder as a reader runs them."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def run_example(folder, monkeypatch, capsys):
    """Runs an example in this process; gives what it prints."""

    def run(name):
        monkeypatch.chdir(folder)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_profile_then_plan(run_example):
    profiled = run_example("profile_model")
    assert profiled.startswith("12,288 tokens, 32 experts, k = 4\n")
    assert all(1 < float(found) < 31 for found in re.findall(r"with ([\d.]+) others", profiled))

    planned = run_example("make_plan")
    rows = [line.split() for line in planned.splitlines()[1:4]]
    bounds, copies, loads = zip(*rows, strict=True)
    assert bounds == ("1.1", "1.3", "any")
    assert sorted(copies, reverse=True) == list(copies)
    assert float(loads[0].rstrip("x")) <= 1.1
    assert "a row per expert: 4 copies" in planned


def test_route(run_example):
    plain, *rows = [line.split() for line in run_example("route").splitlines()[1:7]]
    assert [row[0] for row in rows] == ["c2r", "group_limited", "pruned", "budgeted", "priced"]
    assert all(float(row[-1]) < float(plain[-1]) for row in rows)


@pytest.fixture
def planned(run_example, folder):
    """The folder holds a profile and a plan."""
    if not (folder / "plan.safetensors").exists():
        run_example("profile_model")
        run_example("make_plan")


def test_finetune(planned, run_example):
    losses = re.findall(r"loss ([\d.]+) became ([\d.]+)", run_example("finetune"))
    assert len(losses) == 2 and losses[0][0] == losses[1][0]
    assert all(float(after) < float(before) for before, after in losses)


def test_accelerate_loop(planned, run_example):
    printed = run_example("accelerate_loop")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 6 and sum(losses[3:]) < sum(losses[:3])
    assert all(1 < float(copies) < 4 for copies in re.findall(r"([\d.]+) copies", printed))
    assert printed.endswith("parameters saved with the plan\n")


@pytest.mark.distributed
def test_expert_parallel(planned, folder):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4"]
    done = subprocess.run(
        [*launcher, str(EXAMPLES / "expert_parallel.py")],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PET_STANDALONE": "1"},  # on a free port
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"rank \d holds 786,432 parameters", done.stdout)) == 4
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 3 and losses[2] < losses[0]


def test_none_is_forgotten():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.stem}' not in source] == []
