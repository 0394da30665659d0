"""What the architecture promises and import-linter cannot see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import c2r
from c2r.planning import make_plan
from tests.reporting.profiles import clustered_profile

SOURCE = Path(c2r.__file__).parent
ROOMS_WITHOUT_TORCH = (
    "c2r",
    "c2r.types",
    "c2r.errors",
    "c2r.artifacts",
    "c2r.plans",
    "c2r.profiling",
    "c2r.prediction",
    "c2r.planning",
    "c2r.reporting",
    "c2r.adapters.engines",
)
COMMANDS_WITHOUT_TORCH = {
    "inspect a profile": "inspect profile",
    "inspect a plan": "inspect plan",
    "plan": "plan profile --ranks 4 --out made",
    "traffic": "traffic profile --plan plan",
    "export": "export --plan plan --format sglang --out made",
    "report": "report profile plan --out made",
}
HEAVY = {"torch", "transformers"}


def heavy_modules_after(code, folder):
    """Which of the heavy libraries a new process has loaded after `code`."""
    code = f"import sys\n{code}\nprint(*sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return finished.stderr.splitlines()[-1].split()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    profile = clustered_profile(num_layers=2, num_experts=8, top_k=2, num_tokens=100)
    profile.save(folder / "profile")
    make_plan(profile, num_ranks=4).save(folder / "plan")
    return folder


def test_a_heavy_import_would_be_seen(tmp_path):
    assert heavy_modules_after("import c2r.routing", tmp_path) == ["torch"]


@pytest.mark.parametrize("room", ROOMS_WITHOUT_TORCH)
def test_a_room_that_needs_no_model_imports_no_torch(room, tmp_path):
    assert heavy_modules_after(f"import {room}", tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS_WITHOUT_TORCH)
def test_a_command_that_needs_no_model_imports_no_torch(command, files):
    arguments = COMMANDS_WITHOUT_TORCH[command].split()
    (files / "made").unlink(missing_ok=True)
    code = f"from c2r.cli import run_command\nassert run_command({arguments}) == 0"
    assert heavy_modules_after(code, files) == []


def users_of(name, source=SOURCE):
    """Files below `source` whose code names the module or attribute `name`, as `os.environ`."""
    return {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if any(found == name or found.startswith(f"{name}.") for found in names_in(path))
    }


def names_in(path):
    """Dotted names that a file imports, or reads of what it imports."""
    homes = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                homes[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                homes[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            start, *rest = ast.unparse(node).split(".")
            yield ".".join([homes.get(start, start), *rest])


def test_users_are_found_however_they_name_a_module(tmp_path):
    uses = {
        "alias": "import torch.distributed as dist\ndist.barrier()",
        "from": "def f():\n    from torch import distributed",
        "below": "from torch.distributed.tensor import DTensor",
        "attribute": "import torch\ntorch.distributed.barrier()",
        "other": "import torch\ntorch.distributed_of_ours = 'torch.distributed'",
    }
    for name, text in uses.items():
        (tmp_path / f"{name}.py").write_text(text)
    found = users_of("torch.distributed", tmp_path)
    assert found == {"alias.py", "from.py", "below.py", "attribute.py"}


def test_only_the_parallel_room_touches_torch_distributed():
    users = users_of("torch.distributed")
    assert users and all(path.startswith("parallel/") for path in users)


def test_the_environment_is_read_in_few_places():
    """What torchrun tells in the first two; the next know a variable of our own each.

    The last is a program of its own, which sets what vLLM reads when it is imported.
    """
    readers = {"cli/processes.py", "parallel/world.py", "ops/backend.py", "serving/binding.py"}
    readers |= {"serving/vllm_program.py"}
    assert users_of("os.environ") == readers
    assert users_of("os.getenv") == set()
