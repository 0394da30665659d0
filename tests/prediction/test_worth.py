"""When a plan pays, when nobody can tell, and what stands in its way."""

from dataclasses import replace

import pytest

from c2r.planning import make_plan
from c2r.plans import ClusterTopology
from c2r.prediction import Saving, StepTime, Worth, best_time, break_even_tokens
from c2r.prediction.worth import BATCHES, PREDICTION_ERROR, hindrance, smallness
from tests.prediction.test_time import MILLION, ONE, profile

BEFORE = StepTime(dispatcher="zero_redundancy", layers=(), rest=100.0)


def saving(after):
    return Saving(BEFORE, replace(BEFORE, rest=after))


@pytest.mark.parametrize(
    ("after", "worth", "headline"),
    [
        (90.0, Worth.PAYS, "Saves 10.0 % of a step"),
        (98.8, Worth.NO_DIFFERENCE, "1.2 % less time a step"),
        (100.0, Worth.NO_DIFFERENCE, "the same time a step"),
        (101.0, Worth.NO_DIFFERENCE, "1.0 % more time a step"),
        (110.0, Worth.SLOWER, "Adds 10.0 % to a step"),
    ],
)
def test_three_states(after, worth, headline):
    found = saving(after)
    assert found.worth is worth and found.headline.endswith(headline)


def test_the_threshold_is_the_error_of_predictions():
    assert saving(100 * (1 - PREDICTION_ERROR) - 0.01).worth is Worth.PAYS
    assert saving(100 * (1 - PREDICTION_ERROR) + 0.01).worth is Worth.NO_DIFFERENCE


def test_a_step_of_nothing_saves_nothing():
    nothing = replace(BEFORE, rest=0.0)
    assert Saving(nothing, nothing).worth is Worth.NO_DIFFERENCE


@pytest.mark.parametrize(
    ("experts", "ranks", "nodes", "load", "said"),
    [
        (1, 16, 2, 2.2, "only save hops between nodes (the busiest rank has 2.20 times"),
        (1, 8, 1, 2.2, "even out their work (the busiest rank"),
        (4, 8, 1, 1.4, "Still the busiest rank has 1.40 times the mean work"),
    ],
)
def test_what_placement_cannot_do(experts, ranks, nodes, load, said):
    found = hindrance(experts, ClusterTopology(num_ranks=ranks, num_nodes=nodes), load)
    assert said in found and "--replicas auto" in found


@pytest.mark.parametrize(("microseconds", "share"), [(0.0, "0 %"), (1e9, "100 %")])
def test_a_very_small_model_is_told_apart(microseconds, share):
    seen = profile()
    latent = {"inner_microseconds": microseconds, "launch_microseconds": microseconds}
    cluster = replace(ONE, num_ranks=4, **latent)
    step = best_time(seen, None, cluster, MILLION, chunks=(1,))
    small = replace(MILLION, sizes=replace(MILLION.sizes, hidden_size=64))
    assert f"(hidden size 64): {share} of a step is latency" in smallness(step, small)
    usual = replace(MILLION, sizes=replace(MILLION.sizes, hidden_size=512))
    assert smallness(step, usual) == ""


def test_nothing_is_in_the_way_of_even_ranks():
    assert hindrance(4, ClusterTopology(num_ranks=8, num_nodes=1), 1.1) == ""
    assert hindrance(8, ClusterTopology(num_ranks=1, num_nodes=1), 1.0) == ""


def test_the_break_even_is_where_a_plan_begins_to_save():
    seen, cluster = profile(), replace(ONE, num_ranks=4, inner_microseconds=10.0)
    plan = make_plan(seen, 4, cluster=cluster, workload=MILLION, replicas=2)
    tokens = break_even_tokens(seen, plan, cluster, MILLION)
    assert tokens in BATCHES[1:]
    for tried in (tokens // 2, tokens):
        work = replace(MILLION, tokens_per_rank=tried)
        steps = (best_time(seen, each, cluster, work, chunks=(1,)) for each in (None, plan))
        assert (Saving(*steps).worth is Worth.PAYS) == (tried == tokens)
    worse = make_plan(seen, 4, objective="sets")
    slow = replace(cluster, teraflops=1e-9)
    assert break_even_tokens(seen, worse, slow, MILLION) is None
