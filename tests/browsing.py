"""Chromium without a window, and what axe-core says of a page in it."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

_MOUSE = "primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
"""Pages that look for a mouse find one, as on a desktop."""
_PROGRAMS = [shutil.which("chromium"), shutil.which("chromedriver")]


@contextmanager
def open_browser(downloads=None):
    """A driver of Chromium 1280 pixels wide; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    if None in _PROGRAMS:
        pytest.skip("apt-get install chromium chromium-driver to test pages")
    options = webdriver.ChromeOptions()
    options.binary_location = _PROGRAMS[0]
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--blink-settings={_MOUSE}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_PROGRAMS[1]))
    try:
        driver.set_script_timeout(120)
        driver.execute_cdp_cmd("Network.enable", {})
        yield driver
    finally:
        driver.quit()


def read_axe():
    """axe-core as JavaScript; skips where it is not installed."""
    reason = "axe-playwright-python holds axe-core"
    package = pytest.importorskip("axe_playwright_python", reason=reason)
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def serious_violations(browser, axe):
    """What axe-core finds serious or critical on the page shown: rules, and where."""
    browser.execute_script(axe)
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run({resultTypes: ['violations']}).then(done)"
    )
    assert found["passes"]
    return [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
