"""Routers with a group limit of their own: never loosened, and counted where it wins."""

import pytest
import torch

from c2r.adapters.huggingface import apply, capture, constraint_report, find_sites
from tests.adapters.huggingface.checks import random_plan, run
from tests.adapters.huggingface.families import FAMILIES, Family

GROUPED = [family for family in FAMILIES if family.is_grouped]


@pytest.mark.parametrize("family", GROUPED, ids=lambda family: family.name)
def test_the_group_limit_wins_and_is_counted(family: Family) -> None:
    model = family.model("eager")
    sites = find_sites(model)
    plan = random_plan(sites, 2)
    apply(model, plan)
    with capture(model) as recorder, torch.no_grad():
        run(model)
        trace = recorder.take()
    report = constraint_report(model)
    assert any(entry.num_filled_outside_list for entry in report.values())
    for site, layer, lists in zip(sites, trace.layers, plan.layers, strict=True):
        assert site.group_mark is not None
        assert not (layer.scores.gather(-1, layer.expert_ids) == site.group_mark).any()
        outside = sum(
            not set(others) <= set(lists.partners[first].tolist())
            for first, *others in layer.expert_ids.tolist()
        )
        assert report[site.name].num_filled_outside_list == outside
        assert report[site.name].num_tokens == layer.num_tokens


def test_no_group_limit_without_groups() -> None:
    for name in ("qwen2_moe", "deepseek_v3", "dots1"):
        model = next(family for family in FAMILIES if family.name == name).model()
        assert all(site.group_mark is None for site in find_sites(model))
