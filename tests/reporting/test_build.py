import json
from dataclasses import replace

import numpy as np
import pytest

from c2r.planning import make_plan
from c2r.plans import ClusterTopology
from c2r.prediction import predict_traffic
from c2r.prediction.shares import all_shares
from c2r.profiling import mean_metrics, measure_collaboration
from c2r.reporting import build_report, read_inputs
from c2r.reporting.sections.profile import collaboration_matrix
from c2r.reporting.sections.quality import choose_point, name_of
from c2r.results import SweepResult
from tests.reporting.profiles import benchmark_document, clustered_profile, sweep_document

TOPOLOGY = ClusterTopology(num_ranks=4)
RANK_ROWS = {
    "computes": lambda layer: 4 * layer.rows,
    "receives": lambda layer: 3 * layer.visits,
}
"""Of each of its tokens, where the other three ranks have as many."""


@pytest.fixture
def report_of(tmp_path):
    def report_of(*values):
        paths = []
        for index, value in enumerate(values):
            paths.append(tmp_path / str(index))
            if isinstance(value, dict):
                paths[-1].write_text(json.dumps(value))
            else:
                value.save(paths[-1])
        return build_report(read_inputs(paths))

    return report_of


def charts_of(report):
    return {chart.slug: chart for chart in report.charts}


def test_a_profile_alone(report_of):
    profile = clustered_profile(model="m")
    report = report_of(profile)
    collaboration, traffic, saving, quality, load = report.answers
    mean = mean_metrics([measure_collaboration(layer) for layer in profile.layers])
    assert collaboration.number == f"{mean.effective_collaborators:.1f} of 15"
    assert traffic.number == "4" and "c2r plan" in traffic.text
    assert saving.number == "not known" and "c2r sweep" in saving.text
    assert quality.number == "not measured" and load.number == "not known"
    slugs = [section.slug for section in report.sections]
    assert slugs == ["collaboration", "load", "provenance"]
    assert report.title == "m" and "3 MoE layers, 16 experts, k = 4" in report.summary


def test_a_profile_and_a_plan(report_of):
    profile = clustered_profile()
    plan = make_plan(profile, num_ranks=4)
    report = report_of(profile, plan)
    mean = predict_traffic(profile, plan).mean
    _, traffic, saving, quality, load = report.answers
    assert traffic.number == f"{mean.copies_in_order:.2f}"
    assert f"{mean.remote_copies_in_order:.2f} of" in traffic.text
    assert mean.copies_placed == mean.copies_in_order
    assert (saving.number, saving.state) == ("0 %", "plain")
    assert "the output stays the same" in saving.unit
    assert quality.number == "0 %" and "leaves routing as it is" in quality.text
    loads = [
        np.mean(
            [layer.rows.max() / layer.rows.mean() for layer in all_shares(profile, p, TOPOLOGY)]
        )
        for p in (None, plan)
    ]
    assert load.number == "{:.2f} \N{RIGHTWARDS ARROW} {:.2f}".format(*loads)


def test_charts_hold_the_numbers_of_the_library(report_of):
    profile = clustered_profile()
    plan = make_plan(profile, num_ranks=4)
    charts = charts_of(report_of(profile, plan))
    layers = predict_traffic(profile, plan).layers
    _, in_order, placed = charts["copies"].series
    assert in_order.y == tuple(layer.copies_in_order for layer in layers)
    assert placed.y == tuple(layer.copies_placed for layer in layers)
    for slug, of in RANK_ROWS.items():
        for series, tried in zip(charts[f"ranks-{slug}"].series, (None, plan), strict=True):
            shares = all_shares(profile, tried, TOPOLOGY)
            ranked = [np.sort(of(layer))[::-1] for layer in shares]
            assert series.y == pytest.approx(np.mean(ranked, axis=0))
    loads = np.stack([layer.load for layer in profile.layers])
    assert np.array_equal(charts["expert-load"].matrices[0].values, loads)
    table = charts["copies"].to_table()
    column = table.columns.index("copies placed")
    assert [row[column] for row in table.rows] == list(placed.y)


def test_a_collaboration_matrix_puts_the_experts_of_a_rank_together():
    layer = clustered_profile(num_experts=8).layers[0]
    matrix = collaboration_matrix(0, layer, np.array([1, 0, 1, 0, 1, 0, 1, 0]))
    order = [1, 3, 5, 7, 0, 2, 4, 6]
    assert matrix.column_names == tuple(map(str, order)) and matrix.cuts == (4.0,)
    assert np.array_equal(matrix.values, layer.coactivation[np.ix_(order, order)])


def test_many_experts_are_summed_in_blocks():
    layer = clustered_profile(num_experts=160).layers[0]
    matrix = collaboration_matrix(0, layer, None)
    assert matrix.values.shape == (54, 54) and matrix.column_names[:2] == ("0-2", "3-5")
    assert matrix.values.sum() == layer.coactivation.sum()
    assert matrix.values[0, 1] == layer.coactivation[:3, 3:6].sum()
    assert matrix.values[53, 0] == layer.coactivation[159:, :3].sum()


def test_layers_of_different_size(report_of):
    big, small = clustered_profile(num_experts=16), clustered_profile(num_experts=8)
    profile = type(big)(layers=(big.layers[0], small.layers[0]))
    values = charts_of(report_of(profile))["expert-load"].matrices[0].values
    assert values.shape == (2, 16) and np.isnan(values[1, 8:]).all()
    assert values[1, :8].tolist() == small.layers[0].load.tolist()


def test_the_point_of_the_plan_is_chosen(report_of):
    profile = clustered_profile()
    plan = make_plan(profile, num_ranks=4, top_t=8)
    sweep = sweep_document()
    sweep["points"][0]["plan_fingerprint"] = plan.fingerprint
    _, traffic, saving, *_ = report_of(profile, plan, sweep).answers
    assert traffic.number == "2.40" and "held-out" in traffic.text
    assert saving.number == "\N{MINUS SIGN}29 %" and "+10.00 % loss" in saving.unit
    assert saving.text.startswith("Policy c2r 8 (the plan given): 1.70 copies of each token")
    baseline = sweep_document(plan_fingerprint=plan.fingerprint)
    assert name_of(choose_point(SweepResult.from_json(baseline), plan).point) == "plain top-k"


def test_without_a_plan_the_cheapest_point_near_the_quality_is_chosen():
    sweep = sweep_document()
    chosen = choose_point(SweepResult.from_json(sweep), None)
    assert name_of(chosen.point) == "budgeted 0.1" and "within +0.3 % loss" in chosen.reason
    sweep["points"].pop()
    plan = make_plan(clustered_profile(), num_ranks=4, top_t=5)
    chosen = choose_point(SweepResult.from_json(sweep), plan)
    assert chosen.point.strength == 8 and "was not measured" in chosen.reason
    assert chosen.point.loss_increase == pytest.approx(0.1)
    assert name_of(replace(chosen.point, strength=(0.1, 0.3, 0.2))) == "c2r 0.1 to 0.3"


def test_the_curve_holds_the_points_of_the_sweep(report_of):
    sweep = sweep_document()
    sweep["points"][2] |= {"loss_increase": 0.002, "loss_increase_interval": [0.001, 0.004]}
    chart = charts_of(report_of(sweep))["quality"]
    series = {line.name: line for line in chart.series}
    assert series["c2r"].x == (1.4, 1.7) and series["c2r"].labels == ("c2r 4", "c2r 8")
    assert series["c2r"].y == pytest.approx((25, 10))
    assert series["c2r"].lower == pytest.approx((24, 9))
    assert (series["budgeted"].lower, series["budgeted"].upper) == ((0.1,), (0.4,))
    assert series["plain top-k, in order"].x == (2.4,)
    losses = [row[2] for row in chart.to_table().rows]
    assert losses == [2.0, 2.2, 2.5, 2.004]


def test_strengths_spread_over_layers_have_a_line_of_their_own(report_of):
    sweep = sweep_document()
    point = sweep["points"][2] | {"strength": [0.1, 0.2, 0.1]}
    sweep["points"].append(point)
    sweep["spread"] = [{"policy": "budgeted", "strength": [0.1, 0.2, 0.1]}]
    chart = charts_of(report_of(sweep))["quality"]
    lines = {line.name: line.labels for line in chart.series if line.labels}
    assert lines["budgeted"] == ("budgeted 0.1",)
    assert lines["budgeted, spread"] == ("budgeted 0.1 to 0.2",)


def test_the_frontier_has_no_point_that_another_beats(report_of):
    sweep = sweep_document()
    sweep["points"].append(sweep["points"][0] | {"copies": 1.75, "loss_increase": 0.3})
    chart = charts_of(report_of(sweep))["quality"]
    series = {line.name: line for line in chart.series}
    assert series["frontier"].labels == ("c2r 4", "budgeted 0.1", "plain top-k")
    assert series["frontier"].x == (1.4, 1.5, 1.8)


def test_losses_stand_against_time_where_ranks_were_measured(report_of):
    sweep = sweep_document()
    even, one = [0.5] * 4, [1.0, 0.1, 0.1, 0.1]
    for point, visits in zip(
        (sweep["baseline"], *sweep["points"]), (even, one, even, even), strict=True
    ):
        point |= {"rank_rows": [[1.0] * 4], "rank_visits": [visits], "node_visits": [[1.0]]}
    report = report_of(sweep)
    chart = charts_of(report)["quality"]
    assert chart.x_label.startswith("milliseconds") and report.sections[0].title.endswith("time")
    named = [line for line in chart.series if line.labels]
    times = {name: x for line in named for name, x in zip(line.labels, line.x, strict=True)}
    assert times["c2r 8"] > times["c2r 4"] == times["budgeted 0.1"] > 0
    column = chart.to_table().columns.index("step ms")
    assert [row[column] for row in chart.to_table().rows][1] == times["c2r 8"]


def test_benchmarks_and_trainings(report_of):
    log = [{"step": 1, "loss": 2.0, "copies_per_token": 1.25}, {"step": 2, "eval_loss": 1.5}]
    state = {"log_history": log}
    report = report_of(benchmark_document(), state)
    charts = charts_of(report)
    (bars,) = charts["benchmark-0"].series
    assert bars.x[:2] == ("k_fold", "zero_redundancy") and bars.y == pytest.approx((600, 500, 400))
    assert bars.upper == pytest.approx((620, 520, 420))
    text = next(section.text for section in report.sections if section.slug == "benchmark-0")
    assert "Ratios in the table are to k_fold" in text and "model tiny, rounds 7" in text
    assert "ratio: median" in charts["benchmark-0"].to_table().columns
    train, held_out = charts["training-0"].series
    assert (train.x, train.y, held_out.x, held_out.y) == ((1,), (2.0,), (2,), (1.5,))
    (copies,) = charts["training-0-copies"].series
    assert (copies.x, copies.y) == ((1,), (1.25,))


def test_provenance_names_every_file(report_of):
    report = report_of(clustered_profile(request={"model": "m", "texts": [{"name": "t"}]}))
    rows = report.sections[-1].table.rows
    assert ("0", "profile", "request.texts.0.name", "t") in rows
