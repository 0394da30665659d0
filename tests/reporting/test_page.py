import base64
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from c2r.errors import InputError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.reporting import build_report, read_inputs, render_page, write_figures
from c2r.reporting.charts import HeatMap, Matrix
from c2r.reporting.plotly_charts import plot, to_json
from tests.reporting.profiles import benchmark_document, clustered_profile, sweep_document

pytest.importorskip("plotly", reason="plotly draws the page")

HOSTILE = "</script><img src=x onerror=alert(1)><b>$x$ ${plotly} `rm`"


def hostile_files(folder):
    """Every name that comes from a model, a file or a measurement holds markup."""
    sweep = sweep_document()
    sweep["points"][0]["policy"] = HOSTILE
    sweep["request"]["model"] = HOSTILE
    benchmark = benchmark_document() | {"benchmark": HOSTILE, "baseline": HOSTILE}
    benchmark["cases"][0]["case"]["name"] = HOSTILE
    profile, paths = clustered_profile(model=HOSTILE), [folder / "profile", folder / "sweep"]
    paths.append(folder / HOSTILE.replace("/", ""))
    profile.save(paths[0])
    paths[1].write_text(json.dumps(sweep))
    paths[2].write_text(json.dumps(benchmark))
    return paths


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)


def test_hostile_names_become_text(tmp_path):
    page = render_page(build_report(read_inputs(hostile_files(tmp_path))))
    parser = _Tags()
    parser.feed(page)
    assert "img" not in parser.tags and parser.tags.count("script") == 4
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    data = re.search(r'<script id="charts" type="application/json">(.*?)</script>', page, re.S)
    names = [trace["name"] for trace in json.loads(data[1])["quality"]["figures"][0]["data"]]
    assert any(name.startswith("&lt;/script&gt;&lt;img") for name in names)


def test_plotly_knows_every_property_of_every_figure(tmp_path):
    import plotly.graph_objects as go

    planned = clustered_profile()
    make_plan(planned, num_ranks=4).save(tmp_path / "plan")
    charts = build_report(read_inputs([*hostile_files(tmp_path), tmp_path / "plan"])).charts
    figures = [figure for chart in charts for figure in plot(chart)]
    assert {figure["data"][0]["type"] for figure in figures} == {"scatter", "bar", "heatmap"}
    for figure in figures:
        go.Figure(figure)
    with pytest.raises(ValueError, match="colour"):
        go.Figure({"data": [{**figures[0]["data"][0], "colour": "red"}]})


def test_numbers_that_are_not_finite_are_null():
    figure = {"data": [{"y": [float("nan"), np.float64(1.5), np.int64(2), -np.inf]}]}
    assert json.loads(to_json(figure)) == {"data": [{"y": [None, 1.5, 2, None]}]}


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (np.array([[0, 255]]), "u1"),
        (np.array([[0, 256], [3, 4]]), "u2"),
        (np.array([[0, 70_000]]), "u4"),
        (np.array([[0.5, np.nan]]), "f8"),
        (np.array([[-1, 2]]), None),
        (np.array([[0, 2**33]]), None),
        (np.empty((0, 3), dtype=np.int64), None),
    ],
)
def test_a_matrix_as_the_page_reads_it(values, code):
    names = [tuple(map(str, range(size))) for size in values.shape]
    matrix = Matrix(name="", values=values, row_names=names[0], column_names=names[1])
    labels = dict.fromkeys(("slug", "title", "x_label", "y_label", "unit"), "a")
    (figure,) = plot(HeatMap(**labels, matrices=(matrix,), ceiling=1.0))
    found = figure["data"][0]["z"]
    if code is None:
        assert found == values.tolist()
        return
    assert found["dtype"] == code and found["shape"] == f"{values.shape[0]}, {values.shape[1]}"
    read = np.frombuffer(base64.b64decode(found["bdata"]), f"<{code}").reshape(values.shape)
    assert np.array_equal(read, values, equal_nan=True)


def test_figures_of_hostile_names(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws the figures")
    report = build_report(read_inputs(hostile_files(tmp_path)))
    paths = write_figures(report, tmp_path / "figures")
    assert len(paths) == 2 * len(report.charts)
    for path in paths:
        start = {".png": b"\x89PNG", ".svg": b"<?xml"}[path.suffix]
        assert path.read_bytes().startswith(start)
    assert "<img" not in (tmp_path / "figures" / "quality.svg").read_text()
    again = write_figures(report, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_without_plotly_or_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    clustered_profile().save(tmp_path / "profile")
    report = build_report(read_inputs([tmp_path / "profile"]))
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"c2r-moe\[report\]"):
        render_page(report)
    monkeypatch.setattr("c2r.reporting.matplotlib_charts.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"c2r-moe\[plot\]"):
        write_figures(report, tmp_path)


def test_a_page_of_94_layers_and_512_experts_is_small(tmp_path):
    profile = clustered_profile(num_layers=94, num_experts=512, top_k=8, num_tokens=200)
    rng = np.random.default_rng(0)
    layers = tuple(
        LayerPlan(name=layer.name, num_experts=512, top_k=8, placement=rng.permutation(512) // 8)
        for layer in profile.layers
    )
    profile.save(tmp_path / "profile")
    Plan(layers=layers, topology=ClusterTopology(num_ranks=64)).save(tmp_path / "plan")
    page = render_page(build_report(read_inputs([tmp_path / "profile", tmp_path / "plan"])))
    assert len(page.encode()) < 15_000_000
    assert "8 neighbouring experts are summed into one cell" in page
