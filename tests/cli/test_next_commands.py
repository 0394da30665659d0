"""Every command that a command prints to be run next runs as it is printed.

Those of c2r are run where they were printed; those of engines are parsed with the flags recorded of
the release that is named.
"""

import re
import shlex
import shutil
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from c2r.adapters.formats import ExportFormat
from c2r.assets import heldout_files
from c2r.cli import run_command
from tests.adapters.engines.recorded_flags import FLAGS, parse

FEW = ["--tokens", "500", "--seq-len", "128"]
_C2R = re.compile(r"(?:^|: |  )(c2r [a-z-]+ .+)$")
_ENGINES = ("vllm serve", "python -m sglang", "torchrun", "echo ", "srun")
_START = re.compile(rf"^start ({'|'.join(map(re.escape, FLAGS))}) with it")


@dataclass(frozen=True)
class Printed:
    """What one command printed: c2r's next ones, and those of engines with their releases."""

    text: str
    own: list[str]
    engines: list[tuple[str, str]]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A short text, one that only the user has, and a profile of the embedded model."""
    folder = tmp_path_factory.mktemp("material")
    content = heldout_files()[0].read_text()
    (folder / "short.txt").write_text(content[:12_000])
    (folder / "OTHER.txt").write_text(content[12_000:18_000])
    command = ["profile", "tiny", "--text", "short.txt", "--out", "profile.safetensors", *FEW]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(command) == 0
    return folder


@pytest.fixture
def run(capsys, material, tmp_path, monkeypatch):
    """Runs a line as a shell would that knows `&&` and `> file`, beside a copy of the material."""
    for path in material.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    # In place of the embedded text, which takes a minute to measure.
    monkeypatch.setattr("c2r.assets.heldout_files", lambda: (tmp_path / "short.txt",))

    def started(line):
        capsys.readouterr()
        for command in line.split(" && "):
            words = shlex.split(command)
            assert words.pop(0) == "c2r"
            with ExitStack() as stack:
                if ">" in words:
                    file = stack.enter_context(Path(words.pop()).open("w"))
                    stack.enter_context(redirect_stdout(file))
                    words.remove(">")
                status = run_command(words)
            assert status == 0, (command, capsys.readouterr().err)
        out, err = capsys.readouterr()
        return read(out + err)

    return started


def read(text):
    own, engines, release = [], [], None
    for line in text.splitlines():
        start, command = _START.search(line), _C2R.search(line)
        release = start[1] if start else release
        if line.startswith("    ") and line.strip().startswith(_ENGINES):
            engines.append((release, line.strip()))
        elif command and not line.startswith("Example"):
            own.append(command[1])
    return Printed(text, own, engines)


def follow(run, line, steps=4):
    """Runs a command, then what it prints, and so on; gives all that was run and parsed."""
    printed = run(line)
    done = [line]
    for release, command in printed.engines:
        parse(release, command)
        done.append(command)
    for command in printed.own if steps else ():
        done += follow(run, command, steps - 1)
    return done


PLANS = {
    "placed, two nodes": "--cluster h100-8x2",
    "placed on slow links": "--cluster hosts-4-10g",
    "decode": "--cluster h100-8 --phase decode",
    "replicas": "--cluster hosts-4-10g --replicas 1",
    "constrained": "--ranks 4 --policy priced=0.1",
    "fewest copies": "--ranks 8 --objective sets",
}


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_what_a_plan_leads_to(run, options):
    done = follow(run, f"c2r plan profile.safetensors {options} --out plan.safetensors")
    assert len(done) > 1


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_what_an_export_leads_to(run, num_nodes):
    run(f"c2r plan profile.safetensors --ranks 4 --nodes {num_nodes} --out plan.safetensors")
    for format_ in ExportFormat:
        out = f"{format_}.json"
        done = follow(run, f"c2r export --plan plan.safetensors --format {format_} --out {out}")
        engines = [line for line in done if not line.startswith("c2r ")]
        assert engines and "MODEL" not in " ".join(engines)
        is_permuted = any(line.startswith("c2r permute tiny --plan plan") for line in done)
        assert is_permuted == (format_ in ("vllm", "megatron"))
        shutil.rmtree("renumbered", ignore_errors=True)


def test_what_a_constrained_folder_leads_to(run):
    run(
        "c2r plan profile.safetensors --cluster h100-8x2 --policy priced=0.1 --out plan.safetensors"
    )
    done = follow(run, "c2r apply tiny --plan plan.safetensors --out constrained")
    assert done[1] == "c2r permute constrained --out constrained-placed"
    folder = str(Path("constrained-placed").absolute())
    assert len(done) == 6 and all(folder in line for line in done[2:])  # two engines, two nodes


@pytest.mark.parametrize("cluster", ["hosts-4-10g", "h100-8"])
def test_what_a_report_leads_to(run, cluster):
    run(f"c2r plan profile.safetensors --cluster {cluster} --out plan.safetensors")
    done = follow(run, "c2r report profile.safetensors plan.safetensors --out report.html")
    assert len(done) > 1


@pytest.mark.parametrize("cluster", ["hosts-4-10g", "h100-8"])
def test_what_a_search_leads_to(run, cluster):
    few = "--tokens 2048 --policy priced=0.2 --max-loss-increase 0.5"
    done = follow(run, f"c2r optimize tiny --cluster {cluster} {few} --out best")
    assert len(done) > 1
