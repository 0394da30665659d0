"""The blocks of code in README.md and docs/, and how the tests run them.

A fence is run by its language, `bash` or `python`; an indented block is `bash`. One with a title is
the file of that name. `text` is what the block before it printed. A block that cannot be run here
stands under the comment `<!-- not run: REASON -->`.

All blocks of a page run in order in one folder, with one Python namespace. corpus.txt and
heldout.txt are there, and MODEL (in Python "MODEL") is the embedded model.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from c2r.assets import heldout_files, tiny_folder
from c2r.cli import run_command

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}

_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
_TITLE = re.compile(r'title="(.+)"')
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_CHARACTERS = 2000  # of each embedded text, for each of the two
_PROGRAMS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A block of code.

    Attributes:
        line: where it begins.
        language: of its fence.
        code: what stands in it.
        title: of its fence.
        reason: why it is not run, if so.
    """

    line: int
    language: str
    code: str
    title: str | None
    reason: str | None


def blocks_of(text: str) -> list[Block]:
    """All blocks of a page, in order."""
    found = []
    reason = None
    for token in MarkdownIt("commonmark").parse(text):
        if token.type in ("fence", "code_block"):
            title = _TITLE.search(token.info)
            found.append(
                Block(
                    line=token.map[0] + 1,
                    language=token.info.partition(" ")[0] if token.type == "fence" else "bash",
                    code=token.content,
                    title=title[1] if title else None,
                    reason=reason,
                )
            )
        comment = _NOT_RUN.fullmatch(token.content.strip()) if token.type == "html_block" else None
        reason = comment[1] if comment else None
    return found


def prepare(folder: Path) -> None:
    """Puts into `folder` what the pages take for granted."""
    texts = [path.read_text(encoding="utf-8") for path in heldout_files()]
    for index, name in enumerate(("corpus.txt", "heldout.txt")):
        part = slice(index * _CHARACTERS, (index + 1) * _CHARACTERS)
        (folder / name).write_text("".join(text[part] for text in texts), encoding="utf-8")


def run_page(text: str) -> None:
    """Runs the blocks of a page in the folder that is current."""
    names: dict[str, Any] = {}
    printed: str | None = None
    for block in blocks_of(text):
        try:
            printed = None if block.reason else _run(block, names, printed)
        except AssertionError as error:
            error.add_note(f"in the block of line {block.line}")
            raise


def _run(block: Block, names: dict[str, Any], before: str | None) -> str | None:
    """What the block prints; `before` is what the one before it printed."""
    if block.title is not None:
        path = Path(block.title)
        path.parent.mkdir(exist_ok=True)
        path.write_text(_with_model(block.code), encoding="utf-8")
        return None
    if block.language == "bash":
        return "".join(map(_run_command, commands_of(block.code)))
    if block.language == "python":
        return _run_python(block, names)
    assert block.language == "text", f"a block of {block.language!r}: say `not run`"
    assert before is not None, "no block before it ran: whose output is this?"
    check_shown(block.code, before)
    return None


def commands_of(code: str) -> Iterator[list[str]]:
    """The words of each command, continued lines joined and comments left out."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def _run_command(words: list[str]) -> str:
    program, *arguments = ["tiny" if word == "MODEL" else word for word in words]
    assert program == "c2r" or program in _PROGRAMS, f"{program} cannot be run here: say `not run`"
    if program == "c2r":
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            status = run_command(arguments)
        assert status == 0, output.getvalue()
        return output.getvalue()
    result = subprocess.run(
        [*_PROGRAMS[program], *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PET_STANDALONE": "1"},  # on a free port
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def _run_python(block: Block, names: dict[str, Any]) -> str:
    code = "\n" * block.line + _with_model(block.code)  # lines are those of the page
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(code, "page", "exec"), names)
    return output.getvalue()


def _with_model(code: str) -> str:
    return code.replace('"MODEL"', repr(str(tiny_folder())))


def check_shown(shown: str, printed: str) -> None:
    """Every line shown was printed, in this order; numbers nearly the same on any machine."""
    lines = iter(printed.splitlines())
    for line in filter(str.strip, shown.splitlines()):
        found = any(_is_like(line, candidate) for candidate in lines)
        assert found, f"{line}\nis not in\n{printed}"


def _is_like(shown: str, printed: str) -> bool:
    ours, theirs = (" ".join(line.split()) for line in (shown, printed))
    return _NUMBER.sub("0", ours) == _NUMBER.sub("0", theirs) and all(
        isclose(a, b, rel_tol=0.02, abs_tol=0.002)
        for a, b in zip(_numbers(ours), _numbers(theirs), strict=True)
    )


def _numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(line)]
