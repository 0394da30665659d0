"""What a value shows of itself: the figures that people want, and no arrays."""

from dataclasses import replace

import numpy as np
import pytest

from c2r.planning import make_plan
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile
from c2r.results import Measurement, SweepResult
from c2r.summaries import Summarised
from tests.planning.profiles import random_profile
from tests.results.measurements import measurement_document


def measured(**given):
    return Measurement.from_json(measurement_document(**given))


@pytest.fixture
def profile():
    return random_profile()


def shown(value):
    """Both forms, checked to say the same in few lines."""
    text, html = repr(value), value._repr_html_()
    assert len(text.splitlines()) < 13 and len(text) < 800
    assert "array(" not in text
    for figure in value.summary()[1].values():
        assert figure in text and figure.replace("&", "&amp;") in html
    return text


def test_a_profile(profile):
    text = shown(profile)
    assert "2 of 8 experts, k = 2" in text
    assert f"{profile.num_tokens:,}" in text
    busiest = np.mean([layer.load.max() / layer.load.mean() for layer in profile.layers])
    assert f"{busiest:.2f} of the mean load" in text
    assert "interrupted" in shown(replace(profile, provenance={"complete": False}))
    assert shown(CollaborationProfile(layers=())) == "CollaborationProfile\n  tokens  none"
    assert shown(profile.layers[0]).startswith("LayerProfile (no name): 8 experts, k = 2, ")


def test_a_plan(profile):
    plan = make_plan(profile, num_ranks=4, policy="priced", strength=0.1)
    text, found = shown(plan), plan.provenance["predicted"]
    assert text.startswith(f"Plan {plan.fingerprint}\n")
    assert "4 on 1 node\n" in text and "priced 0.1" in text
    assert f"{found['copies']:.2f}" in text and f"{found['rank_load_max_over_mean']:.2f}" in text
    assert shown(plan.layers[0]) == "LayerPlan (no name): 8 experts, k = 2, priced 0.1"
    damaged = {"predicted": {"copies": "many"}, "cluster": "<b>\x1b[1m"}
    assert "<b>[1m" in repr(replace(plan, provenance=damaged))
    assert "<b>" not in replace(plan, provenance=damaged)._repr_html_()
    assert "many" not in shown(replace(plan, provenance={"predicted": {"copies": "many"}}))
    assert "layers" in shown(Plan(layers=(), topology=plan.topology))


def test_a_measurement():
    found = measured(
        policy="priced",
        strength=0.03,
        loss_increase=0.0039,
        loss_increase_interval=[0.001, 0.007],
        rank_rows=[[1.0] * 64] * 48,
        layer_time=1.25,
    )
    text = shown(found)
    assert "priced 0.03 on 4 ranks" in text
    assert "+0.39 % (95 %: +0.10 to +0.70)" in text
    assert "1.80 (experts in order: 2.40)" in text and "1.250 ms a layer" in text
    assert "a strength for each layer" in shown(replace(found, strength=(0.1, 0.2)))


def test_a_sweep():
    request = {"num_ranks": 4, "num_nodes": 1}
    points = tuple(
        measured(policy="priced", strength=index / 100, copies=1 + index / 10)
        for index in range(1, 13)
    )
    text = shown(SweepResult(request=request, baseline=measured(), points=points))
    assert text.startswith("SweepResult of 12 plans on 4 ranks\n")
    assert "priced 0.08" in text and "copies 1.80" in text
    assert "priced 0.09" not in text and "and 4 more in points" in text


def test_what_tells_nothing_of_itself():
    with pytest.raises(NotImplementedError):
        repr(Summarised())
