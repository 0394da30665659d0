"""Every family: permuted on disk, loaded, the same function; undone, the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from c2r.adapters.huggingface import (
    RouterSite,
    SelectionRule,
    apply,
    find_sites,
    fingerprint,
    permute_checkpoint,
    remove,
    undo_permutation,
)
from c2r.plans import Plan, contiguous_placement
from c2r.plans.model_folder import PLAN_FILE
from c2r.traces import ScoreKind
from tests.adapters.checkpoints.plans import shuffled_plan
from tests.adapters.huggingface.checks import run
from tests.adapters.huggingface.families import FAMILIES, Family

TOLERANCE = 1e-6  # of the largest logit; the largest seen is 6e-7


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Family, tmp_path: Path) -> None:
    experts = family.experts[-1]
    options = {"attn_implementation": "eager", "experts_implementation": experts}
    made = family.model(experts)
    made.save_pretrained(tmp_path / "model")
    model = type(made).from_pretrained(tmp_path / "model", **options).eval()
    sites = find_sites(model)
    num_groups = model.config.n_group if family.is_grouped else 1
    plan = shuffled_plan(sites, model, num_groups=num_groups)

    report = permute_checkpoint(tmp_path / "model", plan, tmp_path / "permuted")
    assert report.num_layers == len(sites)
    permuted = type(made).from_pretrained(tmp_path / "permuted", **options).eval()
    new_plan = Plan.load(tmp_path / "permuted" / PLAN_FILE)
    assert_fits(new_plan, permuted)

    is_bitwise = experts == "grouped_mm" and sums_no_experts(sites[0])
    with torch.no_grad():
        plain = run(model)
        assert_same(run(permuted), plain, is_bitwise)
        apply(model, plan)
        apply(permuted, new_plan)
        constrained = run(model)
        assert_same(run(permuted), constrained, is_bitwise)
        assert sites[0].top_k == 1 or not torch.allclose(plain, constrained, rtol=1e-5)
        remove(model)

    undo_permutation(tmp_path / "permuted", tmp_path / "undone")
    before, after = tmp_path / "model", tmp_path / "undone"
    assert contents(after) == contents(before)
    assert contents(tmp_path / "permuted") != contents(before)


def assert_fits(plan: Plan, model: Any) -> None:
    for layer in plan.layers:
        num_stored = 8  # of every family; LongCat and ZAYA have ids that compute nothing
        assert layer.placement[:num_stored].tolist() == contiguous_placement(8, 4).tolist()
    if type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING:  # others are not loaded to be compared
        found = fingerprint(model, find_sites(model))
        assert plan.provenance["model_fingerprint"] == found


def sums_no_experts(site: RouterSite) -> bool:
    """Whether the router never sums over all experts, an order that renumbering changes.

    The k weighted outputs are summed in the order of the scores, except by a loop over experts.
    """
    is_softmax = site.score_kind is ScoreKind.PROBABILITIES or site.rule is SelectionRule.SCATTER
    return not is_softmax


def assert_same(found: torch.Tensor, expected: torch.Tensor, is_bitwise: bool) -> None:
    if is_bitwise:
        assert torch.equal(found, expected)
    else:
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
