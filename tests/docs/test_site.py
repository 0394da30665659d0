"""The site of the documentation builds strictly, holds every public name, and needs no network."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

import c2r
from c2r.cli import app
from tests.browsing import open_browser, read_axe, serious_violations
from tests.docs.blocks import PAGES, ROOT

pytest.importorskip("mkdocs", reason="pip install -e '.[docs]' to build the site")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site as it is built."""
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
    return folder


@pytest.fixture(scope="module")
def site(folder):
    """Text of each page, by its name without the suffix."""
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


def test_the_keyboard_scrolls_all_code_without_a_script(site):
    page = site["index"]
    assert page.count('<code tabindex="0"') == page.count("<pre") > 3


def test_formulas_are_mathml(site):
    assert site["how-it-works"].count("<math") > 20
    assert "arithmatex" not in site["how-it-works"]
    assert re.findall(r"<m[ion]>\\[^<]*", site["how-it-works"]) == []  # a command it does not know


def pages_of_navigation(browser, folder):
    """The pages that the first page's navigation leads to, in its order."""
    browser.get((folder / "index.html").as_uri())
    links = browser.execute_script(
        "return [...document.querySelectorAll('nav a[href]')].map((link) => link.href)"
    )
    pages = dict.fromkeys(Path(unquote(urlsplit(link).path)) for link in links)
    return [page for page in pages if page.is_file() and folder in page.parents]


def test_five_pages_have_no_serious_violation_of_accessibility(folder):
    axe = read_axe()
    with open_browser() as browser:
        pages = pages_of_navigation(browser, folder)
        quick = [page for page in pages if page.stat().st_size < 100_000]
        chosen = [quick[index * (len(quick) - 1) // 4] for index in range(5)]
        assert len(set(chosen)) == 5
        for page in chosen:
            browser.get(page.as_uri())
            at_once = (
                "document.head.innerHTML += '<style>* { transition: none !important }</style>'"
            )
            browser.execute_script(
                at_once
            )  # colours on their way to the other scheme are neither's
            for scheme in ("default", "slate"):
                switch = "document.body.dataset.mdColorScheme = arguments[0]"
                browser.execute_script(switch, scheme)
                assert serious_violations(browser, axe) == [], f"{page.name}, {scheme}"


def test_the_search_works_from_files(folder):
    with open_browser() as browser:
        wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(browser, 60)
        browser.get((folder / "time.html").as_uri())
        browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
        browser.find_element("css selector", ".md-search__input").send_keys("budgeted")
        found = ".md-search-result__link"
        links = wait.until(lambda browser: browser.find_elements("css selector", found))
        assert any("how-to/plan.html" in link.get_attribute("href") for link in links)
