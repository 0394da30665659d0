"""Every command and every block of code in README.md and docs/ runs, or says why it does not."""

import re

import pytest

from c2r.cli import run_command
from tests.docs.blocks import PAGES, blocks_of, check_shown, commands_of, prepare, run_page


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page(page, tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_page(PAGES[page].read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_named_exists(page, capsys):
    text = PAGES[page].read_text(encoding="utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"\bc2r ((?:bench )?[a-z-]+)([^`\n]*)", text):
        options = re.findall(r"(?<!\S)--[a-z-]+", rest)
        if options:
            run_command([*command.split(), "--help"])
            known = capsys.readouterr().out
            assert [option for option in options if option not in known] == [], command


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page].read_text(encoding="utf-8"))
    assert [target for target in targets if not (PAGES[page].parent / target).exists()] == []


def test_blocks_are_found():
    page = (
        "Text\n\n    c2r one \\\n      two  # three\n\n"
        "<!-- not run: needs 8 GPUs -->\n```python\nimport c2r\n```\n```text\nout\n```\n"
    )
    indented, marked, output = blocks_of(page)
    assert list(commands_of(indented.code)) == [["c2r", "one", "two"]]
    assert (indented.language, indented.reason) == ("bash", None)
    assert (marked.line, marked.language, marked.reason) == (7, "python", "needs 8 GPUs")
    assert (output.language, output.reason) == ("text", None)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("    rm -r folder\n", "rm cannot be run here"),
        ("```bash\nc2r inspect missing.safetensors\n```\n", "missing.safetensors"),
        ("```python\nassert 1 == 2\n```\n", None),
        ("```python\nprint(1.5)\n```\n```text\n1.7\n```\n", "is not in"),
        ("<!-- not run: a reason -->\n```bash\nrm\n```\n```text\nx\n```\n", "no block before it"),
        ("```\nwhat is this?\n```\n", "say `not run`"),
    ],
)
def test_a_wrong_page_fails(page, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=error) as found:
        run_page(page)
    assert "in the block of line" in found.value.__notes__[0]


def test_output_shown_may_leave_lines_out():
    check_shown("(first 1.01,\nlast\n", "(first   1.00,\nsecond\nlast\n")
    for printed in ("(first 1.1,\nlast\n", "last\n(first 1.01,\n", "(first 1.01,\n"):
        with pytest.raises(AssertionError):
            check_shown("(first 1.01,\nlast\n", printed)
