"""The page as Chromium shows it; one browser for the module, skipped where there is none."""

import json
import shutil
import subprocess
import time
from contextlib import contextmanager

import numpy as np
import pytest

from c2r.planning import make_plan
from c2r.prediction import predict_traffic
from c2r.reporting import build_report, read_inputs, write_page
from tests.reporting.profiles import benchmark_document, clustered_profile, sweep_document
from tests.reporting.test_page import hostile_files

pytest.importorskip("plotly", reason="plotly draws the page")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")

PROGRAMS = [shutil.which("chromium"), shutil.which("chromedriver")]
pytestmark = pytest.mark.skipif(
    None in PROGRAMS, reason="apt-get install chromium chromium-driver to test the page"
)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS[0]
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    service = webdriver.ChromeService(PROGRAMS[1])
    driver = webdriver.Chrome(options=options, service=service)
    driver.execute_cdp_cmd("Network.enable", {})
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def axe(pytestconfig):
    """axe-core as JavaScript, fetched once into pytest's cache."""
    folder = pytestconfig.cache.mkdir("axe-core")
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            pytest.skip("axe-core needs npm to be fetched")
        command = ["npm", "install", "--fetch-retries=0", "--prefix", str(folder), "axe-core@4"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("npm could not fetch axe-core")
    return script.read_text(encoding="utf-8")


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
    draw_all(browser)


def figure_width(browser):
    code = "return document.querySelector('#plot-copies svg').getBoundingClientRect().width"
    return browser.execute_script(code)


_SCROLL_WIDTH = "return document.documentElement.scrollWidth"


def draw_all(browser):
    """Figures are drawn when they come near the screen: goes there, and back to the top."""
    browser.execute_script(
        "Object.keys(charts).forEach((slug) => { drawn.add(slug); draw(slug); })"
    )


def rectangle_of(browser, selector):
    code = (
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [r.left, r.top, r.right, r.bottom]"
    )
    return browser.execute_script(code, selector)


def figure_of(browser, slug, key):
    code = f"return JSON.stringify(document.getElementById('plot-{slug}').data[0].{key})"
    return json.loads(browser.execute_script(code))


def table_of(browser, slug):
    """Rows of the table as the CSV tells them: exact."""
    code = "return csvOf(document.getElementById(arguments[0]))"
    text = browser.execute_script(code, f"table-{slug}")
    return [line.split(",") for line in text.splitlines()]


@contextmanager
def opened(browser, slug):
    details = browser.find_element("css selector", f"details[data-chart='{slug}']")
    details.find_element("tag name", "summary").click()
    wait_for(
        lambda: browser.execute_script(
            "return arguments[0].rows.length", details.find_element("tag name", "table")
        )
    )
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
    assert browser.execute_script("return document.querySelectorAll('.plot svg').length") > 0


def test_the_slider_shows_a_layer_in_figure_and_table(browser, shown):
    profile, plan = shown
    slider = browser.find_element("css selector", "input[data-chart='collaboration']")
    slider.send_keys(webdriver.Keys.ARROW_RIGHT)
    assert slider.find_element("xpath", "following-sibling::output").text == "layer 1"
    order = np.argsort(plan.layers[1].placement, kind="stable")
    expected = profile.layers[1].coactivation[np.ix_(order, order)]
    assert figure_of(browser, "collaboration", "z") == expected.tolist()
    with opened(browser, "collaboration"):
        head, *rows = table_of(browser, "collaboration")
        assert head[1:] == [str(expert) for expert in order]
        assert [[int(cell) for cell in row[1:]] for row in rows] == expected.tolist()
        slider.send_keys(webdriver.Keys.ARROW_LEFT)
        assert table_of(browser, "collaboration")[1][1:] != rows[0][1:]


def test_the_theme_switch(browser, shown):
    def look():
        code = "return [getComputedStyle(document.body).backgroundColor, arguments[0].textContent]"
        button = browser.find_element("id", "theme")
        return [*browser.execute_script(code, button), figure_of(browser, "copies", "line")]

    before = look()
    browser.find_element("id", "theme").send_keys(webdriver.Keys.ENTER)
    after = look()
    assert all(a != b for a, b in zip(before, after, strict=True))
    browser.find_element("id", "theme").send_keys(webdriver.Keys.ENTER)
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


def test_hovering_shows_the_value(browser, shown):
    profile, plan = shown
    browser.execute_script("Plotly.Fx.hover('plot-copies', [{curveNumber: 2, pointNumber: 1}])")
    text = browser.execute_script(
        "return document.querySelector('#plot-copies .hoverlayer').textContent"
    )
    copies = predict_traffic(profile, plan).layers[1].copies_placed
    assert f"layer 1: {copies:.6g}" in text and "once per rank, placed" in text


def test_a_table_is_downloaded(browser, shown, downloads):
    with opened(browser, "copies") as details:
        details.find_element("css selector", "button.csv").click()
        path = downloads / "copies.csv"
        wait_for(path.exists)
    assert path.read_text().splitlines()[0].startswith("layer,copies k fold")


def test_the_verdict_is_on_the_first_screen(browser, shown):
    browser.execute_script("scrollTo(0, 0)")
    for selector in (".verdict h2", ".bars", ".next", ".answer:last-child .number"):
        left, top, right, bottom = rectangle_of(browser, selector)
        assert 0 <= left < right <= 1280 and 0 <= top < bottom <= 900, selector


def test_the_bars_are_as_long_as_the_steps_take(browser, shown):
    code = (
        "return [...document.querySelectorAll('.bar')].map((b) => b.getBoundingClientRect().width)"
    )
    before, after = browser.execute_script(code)
    found = browser.execute_script(
        "return [...document.querySelectorAll('.bars > b')].map((b) => parseFloat(b.textContent))"
    )
    assert after / before == pytest.approx(found[1] / found[0], rel=0.02)


def test_on_paper_there_are_no_buttons_and_the_theme_is_light(browser, shown):
    browser.execute_script("setTheme('dark'); dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown_as = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert browser.execute_script(shown_as, "#theme") == "none"
    assert browser.execute_script(shown_as, "nav") == "none"
    assert browser.execute_script("return document.documentElement.dataset.theme") == "light"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    browser.execute_script("setTheme('light')")


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(browser, shown, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    draw_all(browser)
    # Figures follow the width of the window some moments later.
    wait_for(lambda: browser.execute_script(_SCROLL_WIDTH) <= width)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_figures_keep_their_place_when_the_window_changes(browser, shown):
    """plotly follows the window's width; what stands below a figure must not come under it."""

    def heights():
        code = (
            "return [...document.querySelectorAll('.plot')].map((place) => "
            "[place.clientHeight, place.querySelector('svg').getBoundingClientRect().height])"
        )
        return browser.execute_script(code)

    draw_all(browser)
    before, width = heights(), figure_width(browser)
    browser.set_window_size(1000, 700)
    wait_for(lambda: figure_width(browser) != width)
    assert heights() == before
    assert all(place >= figure for place, figure in before)
    browser.set_window_size(1280, 900)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(browser, shown, axe, theme):
    browser.execute_script("setTheme(arguments[0])", theme)
    browser.execute_script(axe)
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(done)"
    )
    browser.execute_script("setTheme('light')")
    assert found["passes"]
    serious = [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_hostile_names_are_shown_and_do_nothing(browser, tmp_path):
    page = tmp_path / "hostile.html"
    write_page(build_report(read_inputs(hostile_files(tmp_path))), page)
    show(browser, page)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.images.length") == 0
    assert "<img src=x onerror=alert(1)>" in browser.title
    legend = browser.execute_script(
        "return document.querySelector('#plot-quality .legend').textContent"
    )
    assert "</script><img src=x onerror=alert(1)><b>" in legend
