import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from c2r.errors import InputError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.reporting import build_report, read_inputs, render_page, write_figures
from tests.reporting.profiles import benchmark_document, clustered_profile, sweep_document

HOSTILE = "</script><img src=x onerror=alert(1)><b>$x$ ${style} `rm`"


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
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name == "src"]


def test_hostile_names_become_text(tmp_path):
    page = render_page(build_report(read_inputs(hostile_files(tmp_path))))
    parser = _Tags()
    parser.feed(page)
    assert parser.tags.count("script") == 2
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 5


def test_few_values_are_told_and_many_are_drawn(tmp_path):
    shown = {}
    for layers in (4, 30):
        profile = clustered_profile(num_layers=layers)
        profile.save(tmp_path / "profile")
        make_plan(profile, num_ranks=4).save(tmp_path / "plan")
        page = render_page(build_report(read_inputs([tmp_path / "profile", tmp_path / "plan"])))
        figure = re.search(r'<figure class="(\w+)" id="figure-time-by-layer">(.*?)</figure>', page)
        shown[layers] = figure[1], "<svg" in figure[2], "table-time-by-layer" in figure[2]
        (tmp_path / "plan").unlink()
    assert shown == {4: ("few", False, True), 30: ("part", True, True)}


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


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    clustered_profile().save(tmp_path / "profile")
    report = build_report(read_inputs([tmp_path / "profile"]))
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
    assert len(page.encode()) < 1_500_000
    assert "8 neighbouring experts are summed into one cell" in page
