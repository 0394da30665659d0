"""The first screen: whether the plan pays."""

import json
from dataclasses import replace

import numpy as np
import pytest

from c2r.errors import InputError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.prediction import PRESETS, best_time
from c2r.prediction.workload import UNKNOWN_SIZES, Workload
from c2r.profiling import IdProfileBuilder
from c2r.reporting import build_report, read_inputs
from c2r.reporting.inputs import Inputs
from c2r.reporting.times import find_setting
from c2r.results import SweepResult
from tests.reporting.profiles import clustered_profile, sweep_document
from tests.results.measurements import measurement_document

SLOW = PRESETS["hosts-4-10g"]


def profile_of(ids, num_experts=8):
    """A profile of one layer in which each token chooses its row of `ids`."""
    builder = IdProfileBuilder(num_experts)
    builder.update(0, np.array(ids))
    return builder.build({0: ""})


def plan_of(placement, top_k=2):
    layer = LayerPlan(
        name="", num_experts=len(placement), top_k=top_k, placement=np.array(placement)
    )
    return Plan(layers=(layer,), topology=ClusterTopology(num_ranks=4, num_nodes=4))


APART = [[0, 2], [1, 3], [4, 6], [5, 7]]
"""Pairs that experts in order, two to a rank, keep on two ranks."""
TOGETHER = plan_of([0, 1, 0, 1, 2, 3, 2, 3])
IN_ORDER = plan_of([0, 0, 1, 1, 2, 2, 3, 3])


@pytest.fixture
def verdict_of(tmp_path):
    def verdict_of(*values, **options):
        paths = []
        for index, value in enumerate(values):
            paths.append(tmp_path / f"file {index}")
            if isinstance(value, dict):
                paths[-1].write_text(json.dumps(value))
            else:
                value.save(paths[-1])
        return build_report(read_inputs(paths), **options).verdict

    return verdict_of


def test_it_saves(verdict_of):
    profile = profile_of(APART)
    verdict = verdict_of(profile, TOGETHER, cluster=SLOW)
    assert (verdict.state, verdict.word) == ("good", "worth it")
    workload = Workload(sizes=UNKNOWN_SIZES, tokens_per_rank=4096)
    before, after = (
        best_time(profile, plan, SLOW, workload, chunks=(1,)) for plan in (None, TOGETHER)
    )
    assert [bar.total for bar in verdict.bars] == pytest.approx([before.total, after.total])
    saved = 100 * (1 - after.total / before.total)
    assert saved > 5 and verdict.headline.startswith(
        f"Saves {saved:.1f} % of a step on hosts-4-10g"
    )
    assert sum(verdict.bars[0].parts.values()) == pytest.approx(before.total)
    assert verdict.facts[0].number == "0 %" and "stays the same" in verdict.facts[0].unit
    assert verdict.command == "c2r permute MODEL --plan 'file 1' --out renumbered"
    assert "4,096 tokens a rank, prefill, on hosts-4-10g" in verdict.basis
    assert "experts in order, a token sent once per rank." in verdict.basis
    assert "fewer rows save" in verdict.reason and "ranks take as long" in verdict.reason
    assert "a token visits 1.00 ranks, 2.00 before" in verdict.reason
    assert verdict.reason.endswith("tokens a rank on.") and "It pays from " in verdict.reason
    assert "once per expert (" not in "".join(verdict.remarks)  # the plan saves more


def test_the_figures_of_a_sweep_are_its_own():
    """Also of a preset's name, which means something else here perhaps."""
    sweep = sweep_document()
    figures = replace(PRESETS["h100-8"].of_size(4, 1), name="hosts-4-10g", teraflops=1.0)
    sweep["request"] |= {"cluster": "hosts-4-10g", "cluster_figures": figures.to_json()}
    setting = find_setting(Inputs(sources=(), sweep=SweepResult.from_json(sweep)))
    assert setting.cluster == figures and "--cluster" not in setting.note


def test_a_difference_that_no_prediction_can_tell(verdict_of):
    verdict = verdict_of(profile_of(APART), IN_ORDER, cluster=SLOW)
    assert (verdict.state, verdict.word) == ("plain", "no difference")
    assert verdict.headline.startswith("No difference that a prediction can tell: the same time")
    assert "rows take as long" in verdict.reason and "ranks take as long" in verdict.reason
    assert "off by 4 % in the median" in verdict.basis and "replicas" not in "".join(
        verdict.remarks
    )
    assert verdict.reason.endswith("It pays at none of up to 65,536 tokens a rank.")
    assert verdict.command.startswith("c2r estimate 'file 0' --plan 'file 1' --cluster hosts-4-10g")


def test_where_ranks_hold_one_expert_replicas_are_next(verdict_of):
    verdict = verdict_of(profile_of([[0, 1], [0, 2], [0, 3]], 4), plan_of(range(4)), cluster=SLOW)
    assert verdict.word == "no difference" and "Each rank holds one expert" in verdict.remarks[-2]
    assert "only save hops between nodes (the busiest rank has 2.00 times" in verdict.remarks[-2]
    assert verdict.command.startswith("c2r plan 'file 0' --cluster hosts-4-10g --replicas auto")


def test_where_a_rank_stays_busy_replicas_are_named(verdict_of):
    profile = profile_of([[0, 2], [0, 4], [0, 6], [0, 1]])
    verdict = verdict_of(profile, IN_ORDER, cluster=SLOW)
    assert any("Still the busiest rank has 2.50 times" in remark for remark in verdict.remarks)
    assert "--replicas auto" in verdict.command
    replicas = np.array([[2], [0], [0], [0]])
    layer = replace(IN_ORDER.layers[0], replicas=replicas)
    replicated = verdict_of(profile, replace(IN_ORDER, layers=(layer,)), cluster=SLOW)
    assert "Still" not in "".join(replicated.remarks) and "--replicas" not in replicated.command


def test_the_text_of_the_plan_is_named_and_the_model(verdict_of):
    origin = {"request": {"model": "my model"}}
    profile = replace(profile_of(APART), provenance=origin)
    own = verdict_of(profile, replace(TOGETHER, provenance={"profile": origin}), cluster=SLOW)
    assert "Both on text that the plan was made from" in own.basis
    assert (own.state, own.word) == ("plain", "worth it on its own text")
    assert own.command.startswith("c2r profile 'my model' --text OTHER.txt")
    other = verdict_of(profile, TOGETHER, cluster=SLOW)
    assert (other.state, other.word) == ("good", "worth it")
    assert "the plan was made from" not in other.basis
    assert other.command == "c2r permute 'my model' --plan 'file 1' --out renumbered"


def test_where_exchanges_take_little_the_busiest_rank_is_named_too(verdict_of):
    verdict = verdict_of(profile_of(APART), IN_ORDER, cluster=replace(SLOW, outer_gigabytes=1e4))
    assert "Exchange took 0 % of the step" in verdict.reason
    assert "load of the busiest 1.00, 1.00 before" in verdict.reason


def test_a_plan_that_parts_partners_says_that_it_saves_by_evener_ranks(verdict_of):
    """Partners are on one rank in order, and one of them does most of the work."""
    profile = profile_of([[0, 1]] * 6 + [[2, 3], [4, 5], [6, 7], [4, 6]])
    fast = replace(SLOW, outer_gigabytes=1e4, teraflops=1.0)
    verdict = verdict_of(profile, plan_of([0, 1, 0, 1, 2, 2, 3, 3]), cluster=fast)
    assert "more rows cost" in verdict.reason or "rows take as long" in verdict.reason
    assert "evener ranks save" in verdict.reason
    assert "a token visits 1.80 ranks, 1.10 before" in verdict.reason


def test_slower(verdict_of):
    pairs = [[0, 1], [2, 3], [4, 5], [6, 7]]
    verdict = verdict_of(profile_of(pairs), TOGETHER, cluster=SLOW)
    assert (verdict.state, verdict.word) == ("bad", "slower")
    assert verdict.headline.startswith("Adds ") and "c2r plan" in verdict.command
    assert verdict.bars[1].total > verdict.bars[0].total


def test_collapsed_on_one_rank_is_a_warning(verdict_of):
    """All tokens stay on one rank: a copy each, the least there is, and one rank does all."""
    profile = profile_of(APART)
    alone = {"rank_rows": [[2.0, 0, 0, 0]], "rank_visits": [[1.0, 0, 0, 0]]}
    measured = measurement_document(
        plan_fingerprint=TOGETHER.fingerprint, node_visits=[[1.0, 0, 0, 0]], **alone
    )
    verdict = verdict_of(profile, TOGETHER, measured, cluster=SLOW)
    assert (verdict.state, verdict.word) == ("warning", "collapsed")
    assert "one rank of 4 does 100 % of the work" in verdict.headline


def test_collapsed_on_few_experts_is_a_warning(verdict_of):
    assert verdict_of(profile_of([[0, 1]] * 9 + [[2, 3]])).word == "collapsed"
    assert verdict_of(clustered_profile()).word == "not known"


def constrained(profile):
    return make_plan(profile, num_ranks=4, num_nodes=4, policy="priced", strength=0.1, seed=0)


def measured(plan, profile, low, high):
    """A measurement in which every rank is visited by a third of the tokens."""
    layers = profile.num_layers
    return measurement_document(
        policy="priced",
        strength=0.1,
        plan_fingerprint=plan.fingerprint,
        loss_increase=(low + high) / 2,
        loss_increase_interval=[low, high],
        rank_rows=[[1.0] * 4] * layers,
        rank_visits=[[0.33] * 4] * layers,
        node_visits=[[0.33] * 4] * layers,
    )


def test_a_measurement_tells_the_quality_with_its_interval(verdict_of):
    profile = clustered_profile()
    plan = constrained(profile)
    unknown = verdict_of(profile, plan, cluster=SLOW)
    assert unknown.facts[0].number == "not measured" and "c2r measure" in unknown.command
    assert "plain top-k's routing on the plan's placement" in unknown.basis
    assert (unknown.state, unknown.word) == ("plain", "not known")
    assert "The policy was not measured; its placement alone takes" in unknown.headline
    found = verdict_of(profile, plan, measured(plan, profile, 0.001, 0.002), cluster=SLOW)
    assert found.facts[0].number == "+0.15 %" and found.facts[0].state == "good"
    assert "+0.10 % to +0.20 %" in found.facts[0].unit
    assert found.facts[2].number == "\N{MINUS SIGN}25 %"  # 1.8 copies of 2.4
    assert found.word == "worth it" and "as measured under the plan" in found.basis
    assert "By its placement alone, which costs no quality, a step takes" in found.remarks[0]
    assert found.remarks[0].endswith("less time a step.")
    unsure = verdict_of(profile, plan, measured(plan, profile, -0.001, 0.009), cluster=SLOW)
    assert (unsure.state, unsure.word) == ("warning", "at a price")
    assert "quality may fall" in unsure.headline
    costly = verdict_of(profile, plan, measured(plan, profile, 0.01, 0.02), cluster=SLOW)
    assert (costly.state, costly.word) == ("warning", "at a price")
    assert "quality falls" in costly.headline and "c2r finetune" in costly.command


def test_a_policy_that_saves_no_more_than_its_placement_is_told_so(verdict_of):
    """Measured: each token visits one rank, all alike, as its placement alone has it."""
    profile = profile_of(APART)
    layer = replace(TOGETHER.layers[0], policy="priced", strength=0.1)
    plan = replace(TOGETHER, layers=(layer,))
    shares = {name: [[each] * 4] for name, each in (("rank_visits", 0.25), ("node_visits", 0.25))}
    found = measurement_document(
        policy="priced",
        strength=0.1,
        plan_fingerprint=plan.fingerprint,
        loss_increase=0.001,
        loss_increase_interval=[0.0, 0.002],
        rank_rows=[[0.5] * 4],
        **shares,
    )
    verdict = verdict_of(profile, plan, found, cluster=SLOW)
    assert verdict.word == "worth it"
    assert "the same time a step, so the policy does not pay" in verdict.remarks[0]


def test_a_measurement_of_another_plan_or_shape_does_not_count(verdict_of):
    profile = clustered_profile()
    plan = constrained(profile)
    other = measured(plan, profile, 0.0, 0.0) | {"plan_fingerprint": "of another"}
    assert verdict_of(profile, plan, other).facts[0].number == "not measured"
    few = measured(plan, clustered_profile(num_layers=2), 0.0, 0.0)
    with pytest.raises(InputError, match="2 layers on 4 ranks of 4 nodes were measured"):
        verdict_of(profile, plan, few)


def test_the_cluster_is_the_plans_or_that_of_the_option_or_h100s(verdict_of):
    profile = clustered_profile()
    plan = make_plan(profile, num_ranks=4, num_nodes=4, cluster=SLOW)
    assert "on hosts-4-10g" in verdict_of(profile, plan).basis
    other = PRESETS["hosts-4-100g"]
    assert "on hosts-4-100g" in verdict_of(profile, plan, cluster=other).basis
    plain = make_plan(profile, num_ranks=4, num_nodes=4)
    assert "on h100-8" in verdict_of(profile, plain).basis
    assert "128 tokens a rank" in verdict_of(profile, plain, tokens_per_rank=128).basis


def test_without_a_profile_or_a_plan_the_next_command_makes_one(verdict_of):
    alone = verdict_of(clustered_profile())
    assert alone.state == "plain" and "c2r plan 'file 0'" in alone.command and not alone.bars
    assert "c2r profile" in verdict_of(sweep_document()).command


def task_document(plan, low, high, is_shown):
    entry = {"num_items": 200, "accuracy": 0.5, "reference_accuracy": 0.53, "interval": [low, high]}
    entry |= {"is_shown": is_shown}
    return {
        "kind": "task evaluation",
        "plan_fingerprint": plan.fingerprint,
        "tasks": [],
        "comparison": {"piqa": entry, "sciq": entry, "all": entry | {"num_items": 400}},
    }


def test_answers_to_tasks_count_in_the_quality(verdict_of):
    profile = clustered_profile()
    plan = constrained(profile)
    same = verdict_of(profile, plan, task_document(plan, -0.07, 0.01, False), cluster=SLOW)
    assert same.facts[0].number == "\N{MINUS SIGN}3.0 points" and same.facts[0].state == "good"
    assert "400 items" in same.facts[0].unit and "no difference shown" in same.facts[0].text
    documents = measured(plan, profile, 0.0, 0.001), task_document(plan, -0.05, -0.01, True)
    worse = verdict_of(profile, plan, *documents, cluster=SLOW)
    assert worse.word == "at a price" and "Tasks: " in worse.facts[0].text
