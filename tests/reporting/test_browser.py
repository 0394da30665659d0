"""The page as Chromium shows it; one browser for the module, skipped where there is none."""

import json
import time
from contextlib import contextmanager

import pytest

from c2r.planning import make_plan
from c2r.prediction import predict_traffic
from c2r.reporting import build_report, read_inputs, write_page
from tests.browsing import open_browser, read_axe, serious_violations
from tests.reporting.profiles import benchmark_document, clustered_profile, sweep_document
from tests.reporting.test_page import hostile_files


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    with open_browser(downloads) as driver:
        yield driver


@pytest.fixture(scope="module")
def axe():
    return read_axe()


@pytest.fixture(scope="module")
def shown(tmp_path_factory, browser):
    """A page of every kind of file, and what it was made from."""
    folder = tmp_path_factory.mktemp("report")
    profile = clustered_profile()
    plan = make_plan(profile, num_ranks=4, top_t=8)
    profile.save(folder / "profile")
    plan.save(folder / "plan")
    state = {"log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]}
    documents = {"sweep": sweep_document(), "benchmark": benchmark_document(), "state": state}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    names = ("profile", "plan", *documents)
    write_page(build_report(read_inputs([folder / name for name in names])), folder / "r.html")
    show(browser, folder / "r.html")
    return profile, plan


def show(browser, page):
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())


_FOREIGN_IMAGES = "return [...document.images].filter((i) => !i.src.startsWith('data:')).length"
_SCROLL_WIDTH = "return document.documentElement.scrollWidth"


def rectangle_of(browser, selector):
    code = (
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [r.left, r.top, r.right, r.bottom]"
    )
    return browser.execute_script(code, selector)


def table_of(browser, slug):
    """Rows of the table as the CSV tells them: exact."""
    code = "return csvOf(document.getElementById(arguments[0]))"
    text = browser.execute_script(code, f"table-{slug}")
    return [line.split(",") for line in text.splitlines()]


@contextmanager
def opened(browser, slug):
    details = browser.find_element("css selector", f"#figure-{slug} details")
    details.find_element("tag name", "summary").click()
    yield details
    details.find_element("tag name", "summary").click()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, "the page did not react"
        time.sleep(0.05)
    return found


def test_opens_without_errors_or_requests(browser, shown):
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert sent and all(url.startswith(("file:", "data:", "blob:")) for url in sent)
    assert sum(url.startswith("file:") for url in sent) == 1


def test_the_theme_switch(browser, shown):
    def look():
        code = (
            "const look = (place) => getComputedStyle(document.querySelector(place));"
            "return [look('body').backgroundColor, look('.line').stroke, arguments[0].textContent]"
        )
        return browser.execute_script(code, browser.find_element("id", "theme"))

    before = look()
    browser.find_element("id", "theme").send_keys("\n")
    after = look()
    assert all(a != b for a, b in zip(before, after, strict=True))
    browser.find_element("id", "theme").send_keys("\n")
    assert look() == before


def test_tables_hold_the_numbers_of_the_files(browser, shown):
    profile, plan = shown
    head, *rows = table_of(browser, "copies")
    layers = predict_traffic(profile, plan).to_json()["layers"]
    assert [name.replace(" ", "_") for name in head] == list(layers[0])
    assert [[float(cell) for cell in row] for row in rows] == [list(i.values()) for i in layers]
    head, *rows = table_of(browser, "quality")
    sweep = sweep_document()
    for point, row in zip((sweep["baseline"], *sweep["points"]), rows, strict=True):
        cells = dict(zip(head, row, strict=True))
        assert cells["policy"] == point["policy"]
        assert [float(cells[key]) for key in ("loss", "copies")] == [point["loss"], point["copies"]]


def test_points_stand_where_their_numbers_are(browser, shown):
    """By the ticks: a point's time and loss can be read from the axes."""
    code = """
    const plot = document.querySelector("#figure-quality .plot");
    const middle = (place, side) => {
      const r = place.getBoundingClientRect();
      return side === "left" ? (r.left + r.right) / 2 : (r.top + r.bottom) / 2;
    };
    const ticks = (name, side) => [...plot.querySelectorAll(`.tick.${name}`)].map(
      (tick) => [parseFloat(tick.textContent), middle(tick, side)]);
    const point = plot.querySelector(".point[title^='c2r 8']");
    return [ticks("x", "left"), middle(point, "left"), ticks("y", "top"), middle(point, "top")];
    """
    x_ticks, left, y_ticks, top = browser.execute_script(code)
    (low, first), *_, (high, last) = x_ticks
    assert low + (left - first) / (last - first) * (high - low) == pytest.approx(1.7, abs=0.02)
    assert dict(y_ticks)[10] == pytest.approx(top, abs=1)


def test_a_table_is_downloaded(browser, shown, downloads):
    with opened(browser, "copies") as details:
        details.find_element("css selector", "button.csv").click()
        path = downloads / "copies.csv"
        wait_for(path.exists)
    assert path.read_text().splitlines()[0].startswith("layer,copies once per expert")


def test_the_verdict_is_on_the_first_screen(browser, shown):
    browser.execute_script("scrollTo(0, 0)")
    for selector in (".verdict h2", ".steps", ".next", ".fact:last-child .figure"):
        left, top, right, bottom = rectangle_of(browser, selector)
        assert 0 <= left < right <= 1280 and 0 <= top < bottom <= 900, selector


def test_the_bars_are_as_long_as_the_steps_take(browser, shown):
    code = (
        "const row = document.querySelector('.steps tbody tr');"
        "const widths = [...row.querySelectorAll('i')].map((i) => i.getBoundingClientRect().width);"
        "const said = [...row.querySelectorAll('.number')].map((n) => parseFloat(n.textContent));"
        "return [widths, said];"
    )
    (before, after), found = browser.execute_script(code)
    assert after / before == pytest.approx(found[1] / found[0], rel=0.02)


def test_on_paper_there_are_no_buttons_and_the_theme_is_light(browser, shown):
    color = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(color)
    browser.execute_script("setTheme('dark')")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown_as = "return getComputedStyle(document.querySelector(arguments[0])).display"
    for selector in ("#theme", "nav", "details"):
        assert browser.execute_script(shown_as, selector) == "none", selector
    assert browser.execute_script(color) == light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert browser.execute_script(color) != light
    browser.execute_script("setTheme('light')")


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(browser, shown, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script(_SCROLL_WIDTH) <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(browser, shown, axe, theme):
    browser.execute_script("setTheme(arguments[0])", theme)
    found = serious_violations(browser, axe)
    browser.execute_script("setTheme('light')")
    assert found == []


def test_hostile_names_are_shown_and_do_nothing(browser, tmp_path):
    page = tmp_path / "hostile.html"
    write_page(build_report(read_inputs(hostile_files(tmp_path))), page)
    show(browser, page)
    assert browser.get_log("browser") == []
    assert browser.execute_script(_FOREIGN_IMAGES) == 0
    assert "<img src=x onerror=alert(1)>" in browser.title
    named = browser.execute_script(
        "return [...document.querySelectorAll('#figure-quality .point')].map((p) => p.title)"
    )
    assert any("</script><img src=x onerror=alert(1)><b>" in name for name in named)
