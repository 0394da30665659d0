from dataclasses import replace

import numpy as np
import pytest
import torch

from c2r.adapters.huggingface import apply, find_sites, fingerprint
from c2r.errors import PlanError, PlanMismatchError
from tests.adapters.huggingface.checks import random_plan, run
from tests.adapters.huggingface.families import FAMILIES

FAMILY = next(family for family in FAMILIES if family.name == "mixtral")
MODEL = FAMILY.model()
SITES = find_sites(MODEL)
PLAN = random_plan(SITES, 3)


def test_another_number_of_layers() -> None:
    with pytest.raises(
        PlanMismatchError,
        match="plan is for 1 layers of 8 experts with k = 3, but mixtral has 2 layers of 8 experts",
    ):
        apply(MODEL, replace(PLAN, layers=PLAN.layers[:1]))


@pytest.mark.parametrize("change", [{"num_experts": 16}, {"top_k": 2}])
def test_another_shape(change: dict[str, int]) -> None:
    layers = (PLAN.layers[0], replace(PLAN.layers[1], **change))
    with pytest.raises(PlanMismatchError, match="profile this model"):
        apply(MODEL, replace(PLAN, layers=layers))


def test_another_router_name() -> None:
    layers = (PLAN.layers[0], replace(PLAN.layers[1], name="layers.1.gate"))
    with pytest.raises(PlanMismatchError, match=r"names router layers\.1\.gate where the model"):
        apply(MODEL, replace(PLAN, layers=layers))


def test_names_may_be_unknown() -> None:
    model = FAMILY.model()
    apply(model, replace(PLAN, layers=tuple(replace(layer, name="") for layer in PLAN.layers)))


def test_lists_too_short() -> None:
    with pytest.raises(PlanError, match="T = 1 does not fit 8 experts with k = 3"):
        apply(MODEL, random_plan(SITES, 1))


def test_an_unknown_policy_changes_nothing() -> None:
    layers = tuple(replace(layer, policy="oracle") for layer in PLAN.layers)
    with pytest.raises(PlanError, match="oracle"):
        apply(MODEL, replace(PLAN, layers=layers))
    assert "_c2r_installation" not in vars(MODEL)


def test_another_structure() -> None:
    found = {**fingerprint(MODEL, SITES), "structure": "0" * 16}
    with pytest.raises(PlanMismatchError, match="structure 0000000000000000"):
        apply(MODEL, replace(PLAN, provenance={"model_fingerprint": found}), strict=False)


def test_other_weights() -> None:
    model = FAMILY.model()
    plan = replace(PLAN, provenance={"model_fingerprint": fingerprint(model, SITES)})
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight[0] += 1
    with pytest.raises(PlanMismatchError, match=r"router weights .*strict=False"):
        apply(model, plan)
    apply(model, plan, strict=False)


def test_the_fingerprint_does_not_see_the_dtype() -> None:
    model = FAMILY.model()
    before = fingerprint(model, find_sites(model))
    model.to(torch.bfloat16)
    assert fingerprint(model, find_sites(model)) == before
    apply(model, random_plan(SITES))
    assert fingerprint(model, find_sites(model)) == before


def test_a_router_that_draws_takes_only_lists() -> None:
    model = next(family for family in FAMILIES if family.name == "phimoe").model()
    plan = random_plan(find_sites(model), 2)
    layers = tuple(replace(layer, policy="budgeted", strength=0.1) for layer in plan.layers)
    with pytest.raises(PlanError, match="only lists of partners"):
        apply(model, replace(plan, layers=layers))


@pytest.mark.parametrize(("policy", "strength"), [("budgeted", 0.3), ("group_limited", 1.0)])
def test_policies_that_know_the_placement(policy: str, strength: float) -> None:
    model = FAMILY.model()
    before = run(model)
    layers = tuple(
        replace(layer, policy=policy, strength=strength, placement=np.arange(8) // 4)
        for layer in PLAN.layers
    )
    apply(model, replace(PLAN, layers=layers))
    assert run(model).isfinite().all()
    assert not torch.equal(run(model), before)
