"""Policies that know the placement, on every family: exact, or refused with the reason."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from c2r.adapters.huggingface import SelectionRule, apply, capture, find_sites, remove
from c2r.errors import ModelError, PlanError
from c2r.plans import NO_EXPERTS, ClusterTopology, Plan
from c2r.traces import score_mass, used_places
from tests.adapters.huggingface.checks import _Handed, gradients, random_plan, run
from tests.adapters.huggingface.families import FAMILIES, IS_OLD, Family

CANNOT_DROP = ("dbrx", "jetmoe", "llama4_text", "kolibri1")
BY_NAME = {family.name: family for family in FAMILIES}
DROPPING = [family for family in FAMILIES if family.name not in (*CANNOT_DROP, "phimoe")]


def plan_of(sites, policy, strength, num_ranks=2):
    plan = random_plan(sites)
    layers = tuple(
        replace(
            layer,
            policy=policy,
            strength=strength,
            partners=NO_EXPERTS,
            placement=np.arange(layer.num_experts) % num_ranks,
        )
        for layer in plan.layers
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=num_ranks))


def routed(model):
    """The trace of a run, and what each router's experts were handed."""
    with _Handed(model) as handed, capture(model) as recorder, torch.no_grad():
        run(model)
        return recorder.take(), handed


def by_name(families):
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


def some(*names):
    return by_name([BY_NAME[name] for name in names])


@some("qwen2_moe", "gpt_oss", "dots1", "deepseek_v3 (groups)", "longcat_flash", "zaya", "jetmoe")
def test_budgeted_keeps_its_budget(family: Family) -> None:
    model = family.model("eager")
    sites = find_sites(model)
    apply(model, plan_of(sites, "budgeted", 0.3))
    trace, _ = routed(model)
    for site, layer in zip(sites, trace.layers, strict=True):
        mass = score_mass(layer.scores, layer.score_kind)
        best = mass.topk(site.top_k).values.sum(-1)
        assert (mass.gather(-1, layer.expert_ids).sum(-1) >= 0.7 * best - 1e-5).all()
        assert all(len(set(row)) == site.top_k for row in layer.expert_ids.tolist())


@by_name(DROPPING)
def test_a_dropped_expert_has_no_weight_and_the_others_share_as_the_model_does(family: Family):
    model = family.model("eager")
    sites = find_sites(model)
    (before, _), first = routed(model), sites[0]
    apply(model, plan_of(sites, "pruned", 0.6))
    trace, handed = routed(model)
    given = handed.experts_of(first)
    ids, weights = given or (trace.layers[0].expert_ids, trace.layers[0].weights)
    kept = used_places(ids)
    assert first.top_k == 1 or not kept.all()
    assert (weights[~kept] == 0).all() and (weights[kept] != 0).all()
    # Only the first layer sees the same input as before.
    full = torch.zeros(len(ids), first.num_experts, dtype=torch.float64)
    full.scatter_(-1, before.layers[0].expert_ids, before.layers[0].weights.double())
    ratio = (weights.double() / full.gather(-1, ids))[:, :1]
    assert torch.allclose(weights.double(), full.gather(-1, ids) * ratio * kept, rtol=1e-4)


@some("qwen2_moe", "mixtral", "gpt_oss", "dots1")
def test_gradients_under_each_policy(family: Family) -> None:
    model = family.model("eager")
    sites = find_sites(model)
    for policy, strength in [("budgeted", 0.3), ("pruned", 0.3), ("priced", 0.1)]:
        apply(model, plan_of(sites, policy, strength))
        found = gradients(model)
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert any(found[name].abs().max() > 0 for name in found if name.startswith(sites[0].name))
        remove(model)


@pytest.mark.skipif(IS_OLD, reason="grouped experts of transformers compile from 5.23 on")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_pruned_model_compiles_to_one_graph() -> None:
    model = BY_NAME["dots1"].model("grouped_mm")
    apply(model, plan_of(find_sites(model), "pruned", 0.3))
    expected = run(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled), expected)


@some(*CANNOT_DROP)
def test_dropping_is_refused_where_it_is_not_exact(family: Family) -> None:
    model = family.model("eager")
    before = run(model)
    with pytest.raises(ModelError, match=r"dropped exactly; plan with the budgeted policy"):
        apply(model, plan_of(find_sites(model), "pruned", 0.3))
    assert "_c2r_installation" not in vars(model)
    assert torch.equal(run(model), before)


def test_a_refused_plan_leaves_the_one_before() -> None:
    model = BY_NAME["llama4_text"].model("eager")
    sites = find_sites(model)
    apply(model, plan_of(sites, "budgeted", 0.3))
    before = run(model)
    with pytest.raises(ModelError):
        apply(model, plan_of(sites, "pruned", 0.3))
    assert torch.equal(run(model), before)


@by_name([family for family in FAMILIES if family.is_grouped])
def test_a_models_own_groups(family: Family) -> None:
    model = family.model("eager")
    sites = find_sites(model)
    with pytest.raises(PlanError, match="groups of its own"):
        apply(model, plan_of(sites, "group_limited", 1.0))
    for policy in ("budgeted", "priced", "pruned"):
        apply(model, plan_of(sites, policy, 0.3))
        trace, _ = routed(model)
        for site, layer in zip(sites, trace.layers, strict=True):
            assert not (layer.scores.gather(-1, layer.expert_ids) == site.group_mark).any()


@pytest.mark.parametrize("policy", ["budgeted", "pruned", "priced", "group_limited"])
def test_layers_that_differ_in_k(policy: str) -> None:
    model = BY_NAME["hunyuan_v1_moe (per layer)"].model("eager")
    sites = find_sites(model)
    assert len({site.top_k for site in sites}) == 2
    before = run(model)
    apply(model, plan_of(sites, policy, 1.0 if policy == "group_limited" else 0.4))
    assert not torch.equal(run(model), before)


def test_a_router_that_draws_is_steered_by_lists_only() -> None:
    model = BY_NAME["phimoe"].model("eager")
    sites = find_sites(model)
    assert sites[0].rule is SelectionRule.SCATTER
    for policy in ("budgeted", "pruned", "priced", "group_limited"):
        with pytest.raises(PlanError, match="only lists of partners"):
            apply(model, plan_of(sites, policy, 0.3))
    apply(model, plan_of(sites, "budgeted", 0.0))  # plain top-k
