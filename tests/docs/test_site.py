"""The site of the documentation builds strictly, holds every public name, and needs no network."""

import os
import re
import subprocess
import sys

import pytest
import typer

import c2r
from c2r.cli import app
from tests.docs.blocks import PAGES, ROOT

pytest.importorskip("mkdocs", reason="pip install -e '.[docs]' to build the site")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Text of each page, by its name without the suffix."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return {
        str(page.relative_to(folder).with_suffix("")): page.read_text(encoding="utf-8")
        for page in folder.rglob("*.html")
    }


def test_every_page_is_there(site):
    pages = {name.removeprefix("docs/").removesuffix(".md") for name in PAGES} - {"README"}
    assert pages <= set(site)


def test_nothing_is_fetched(site):
    """No script, style, font or picture comes from elsewhere; links may lead there."""
    for name, page in site.items():
        sources = re.findall(r'\bsrc="([^"]+)"', page)
        sources += re.findall(r'<link rel="(?:stylesheet|preconnect|icon)" href="([^"]+)"', page)
        assert [url for url in sources if re.match(r"(https?:)?//", url)] == [], name


def test_every_public_name_is_described(site):
    page = site["reference/python"]
    found = set(re.findall(r'<h3 id="c2r\.(?:\w+\.)*(\w+)" class="doc doc-heading"', page))
    assert found == set(c2r.__all__)
    assert "doc-module" not in page  # a function, not the module that has its name


def test_every_command_is_described(site):
    commands = typer.main.get_command(app).commands
    for name in commands.keys() - {"bench"}:
        assert f"Usage: c2r {name}" in site["reference/commands"], name
    assert "Usage: c2r bench parallel" in site["reference/commands"]


def test_formulas_are_mathml(site):
    assert site["how-it-works"].count("<math") > 20
    assert "arithmatex" not in site["how-it-works"]
    assert re.findall(r"<m[ion]>\\[^<]*", site["how-it-works"]) == []  # a command it does not know
