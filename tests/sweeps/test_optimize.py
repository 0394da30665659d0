"""Which measured plan is taken for a cluster, and whether it is worth it."""

from dataclasses import replace

import numpy as np
import pytest

from c2r.planning import make_plan
from c2r.prediction import ModelSizes, Phase, Workload, find_cluster
from c2r.profiling import IdProfileBuilder
from c2r.results import Measurement, SweepResult
from c2r.sweeps.optimizing import choose
from tests.planning.instances import random_sets

CLUSTER = find_cluster("hosts-4-10g")
SIZES = ModelSizes(
    hidden_size=1024,
    expert_size=256,
    shared_expert_size=0,
    num_layers=1,
    num_moe_layers=1,
    dense_parameters=0,
)
WORKLOAD = Workload(sizes=SIZES, tokens_per_rank=4096)


@pytest.fixture(scope="module")
def profile():
    sets, counts, _ = random_sets(16, 3, 3000, seed=2, groups=4)
    builder = IdProfileBuilder(16)
    builder.update(0, np.repeat(sets, counts, axis=0))
    return builder.build({0: "model.layers.0.mlp.gate"})


def measured(policy, strength, visits, loss_increase):
    return Measurement(
        policy=policy,
        strength=strength,
        loss=1.0,
        perplexity=2.7,
        kl=0.0,
        top1_agreement=1.0,
        copies=4 * visits,
        copies_in_order=3.0,
        remote_copies=3 * visits,
        node_copies=4 * visits,
        rank_load_max_over_mean=1.0,
        active_experts_per_rank=4.0,
        num_tokens=100,
        loss_increase=loss_increase,
        loss_increase_interval=(0.0, loss_increase),
        plan_fingerprint="0",
        num_ranks=4,
        rank_rows=((0.75,) * 4,),
        rank_visits=((visits,) * 4,),
        node_visits=((visits,) * 4,),
    )


def swept(*points):
    request = {
        "num_ranks": 4,
        "num_nodes": 4,
        "seed": 0,
        "max_load": None,
        "cluster": "hosts-4-10g",
        "tokens_per_rank": 4096,
        "phase": "prefill",
    }
    return SweepResult(request=request, baseline=measured("top_k", 0.0, 0.5, 0.0), points=points)


def test_the_fastest_within_the_loss_is_taken(profile):
    result = swept(
        measured("priced", 0.01, 0.45, 0.001),
        measured("priced", 0.1, 0.3, 0.002),
        measured("priced", 0.3, 0.2, 0.01),
    )
    found = choose(result, profile, CLUSTER, WORKLOAD, 0.003)
    assert (found.chosen.policy, found.chosen.strength) == ("priced", 0.1)
    assert found.plan.layers[0].policy == "priced"
    assert found.after.total < found.placed.total < found.in_order["k_fold"].total
    assert found.is_worth_it and found.declined is None
    assert found.plan.provenance["expected"]["time"]["step"] == found.after.total


def test_no_loss_is_paid_for_less_than_predictions_tell(profile):
    """A visit in a hundred less is less than their error: placement alone costs nothing."""
    result = swept(measured("priced", 0.01, 0.495, 0.001), measured("priced", 0.1, 0.3, 0.01))
    found = choose(result, profile, CLUSTER, WORKLOAD, 0.003)
    assert found.chosen is result.baseline and found.after is found.placed
    assert found.plan.layers[0].policy == "top_k"
    assert (found.declined.policy, found.declined.strength) == ("priced", 0.01)
    assert 0.96 < found.declined.step_time / found.placed.total < 1.0


def test_placement_alone_is_always_allowed(profile):
    found = choose(swept(measured("priced", 0.1, 0.3, 0.5)), profile, CLUSTER, WORKLOAD, 0.003)
    assert found.chosen.policy == "top_k"
    assert found.plan.layers[0].policy == "top_k"


def test_weights_are_read_before_a_plan_and_under_it(profile):
    """Decoding few tokens reads more than it computes, whatever a measurement tells of experts."""
    few = replace(WORKLOAD, tokens_per_rank=2, phase=Phase.DECODE)
    found = choose(swept(), profile, CLUSTER, few, 0.003)
    before, placed = (step.part("compute") for step in (found.before, found.placed))
    assert placed > 0.8 * before > 0
    assert set(found.in_order) == {"k_fold", "all_gather", "zero_redundancy"}


def test_where_exchange_takes_nothing_no_plan_is_worth_it(profile):
    fast = replace(CLUSTER, outer_gigabytes=1e9, outer_microseconds=0.0, teraflops=1e-3)
    result = swept(measured("priced", 0.1, 0.3, 0.001))
    even = make_plan(profile, 4, num_nodes=4, cluster=CLUSTER, workload=WORKLOAD)
    assert even.layers[0].num_experts == 16
    found = choose(result, profile, fast, WORKLOAD, 0.003)
    slow = replace(found, after=replace(found.before, rest=found.before.rest + 1.0))
    assert not slow.is_worth_it
