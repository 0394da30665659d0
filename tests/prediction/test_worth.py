"""When a plan pays, when nobody can tell, and what stands in its way."""

from dataclasses import replace

import numpy as np
import pytest

from c2r.planning import make_plan
from c2r.plans import ClusterTopology
from c2r.prediction import Saving, StepTime, Worth, best_time, break_even_tokens
from c2r.prediction.shares import RankShares
from c2r.prediction.time import baseline, step_time, steps_by_dispatcher
from c2r.prediction.worth import (
    BATCHES,
    PREDICTION_ERROR,
    fewness,
    hindrance,
    is_of_own_text,
    pays_at,
    smallness,
    switching,
)
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


def two_layers(visits, rows):
    """A layer on 4 ranks of a node to each of which these shares come."""
    return RankShares(
        rows=np.array(rows, float),
        visits=np.array(visits, float),
        node_visits=np.array([1.0]),
    )


def saving_of(before, after, dispatcher="zero_redundancy"):
    cluster = replace(ONE, num_ranks=4, inner_microseconds=10.0)
    steps = (step_time([shares], cluster, MILLION, dispatcher) for shares in (before, after))
    return Saving(*steps)


EVEN = two_layers([0.5] * 4, [0.5] * 4)
FEWER = two_layers([0.4] * 4, [0.5] * 4)
UNEVEN_MORE = two_layers([0.4, 0.4, 0.4, 0.7], [0.3, 0.3, 0.3, 1.1])


def test_a_saving_by_fewer_rows_is_told_as_one():
    found = saving_of(EVEN, FEWER)
    assert found.by_rows == pytest.approx(found.before.total - found.after.total)
    assert found.by_load == pytest.approx(0.0, abs=1e-6)
    assert "fewer rows save" in found.origin and "ranks take as long" in found.origin
    assert "a token visits 1.60 ranks, 2.00 before" in found.origin


def test_more_ranks_on_fewer_nodes_are_fewer_rows_between_nodes():
    cluster = replace(ONE, num_ranks=4, num_nodes=2, outer_gigabytes=0.1)
    before, after = (
        step_time([replace(each, node_visits=np.full(2, nodes))], cluster, MILLION, "hierarchical")
        for each, nodes in ((FEWER, 1.0), (EVEN, 0.6))
    )
    found = Saving(before, after)
    assert found.by_rows > 0
    assert "fewer rows between nodes save" in found.origin
    assert "a token visits 2.00 ranks, 1.60 before, on 1.20 nodes, 2.00 before" in found.origin


def test_a_saving_by_evener_ranks_is_told_as_one_though_rows_are_more():
    found = saving_of(UNEVEN_MORE, EVEN)
    assert found.by_rows < 0 < found.by_load
    assert found.by_rows + found.by_load == pytest.approx(found.before.total - found.after.total)
    assert "more rows cost" in found.origin and "evener ranks save" in found.origin
    assert "load of the busiest 1.00, 2.20 before" in found.origin
    back = saving_of(EVEN, UNEVEN_MORE)
    assert "fewer rows save" in back.origin and "less even ranks cost" in back.origin


def test_to_all_ranks_a_plan_saves_by_evener_ranks_only():
    found = saving_of(UNEVEN_MORE, EVEN, "all_gather")
    assert found.by_rows == pytest.approx(0.0) and found.by_load > 0
    assert "rows take as long" in found.origin


def test_another_dispatch_is_named_where_it_saves_more_than_the_plan():
    cluster = replace(ONE, num_ranks=4)
    steps = steps_by_dispatcher([EVEN], cluster, MILLION)
    assert set(steps) == {"k_fold", "all_gather", "zero_redundancy"}
    by_rank = steps["zero_redundancy"]
    twice = steps | {"all_gather": replace(by_rank, dispatcher="all_gather", rest=1e9)}
    assert baseline(steps) is by_rank
    little = Saving(by_rank, by_rank)
    said = switching(twice.values(), little)
    assert "sends each token to all ranks (" in said and "by sending it once per rank" in said
    assert switching([by_rank], little) == ""
    most = Saving(replace(by_rank, rest=1e9), by_rank)
    assert switching(twice.values(), most) == ""


def test_few_tokens_tell_little():
    assert fewness(5_000, 4, 32) == ""
    said = fewness(2_048, 4, 32)
    assert "2,048, some 256 for each expert" in said and "about 6.2 %; 5,000 tell it to 4 %" in said
    assert "100 %" in fewness(0, 4, 32)


def test_own_text_is_known_by_the_profile_or_by_a_text_in_common():
    seen = profile()
    plan = make_plan(seen, 4)
    assert is_of_own_text(seen, plan)

    def on(*digests):
        texts = [{"name": digest, "digest": digest} for digest in digests]
        return replace(seen, provenance={"request": {"texts": texts}})

    assert is_of_own_text(on("a", "b"), make_plan(on("b", "c"), 4))
    assert not is_of_own_text(on("a"), make_plan(on("b", "c"), 4))
    assert not is_of_own_text(on("a"), replace(plan, provenance={}))


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ((), "at none of up to 65,536 tokens a rank"),
        (BATCHES[6:], "from 64 tokens a rank on"),
        ((4, 8), "from 4 to 8 tokens a rank"),
    ],
)
def test_the_batches_that_a_plan_pays_at_in_words(batches, said):
    assert pays_at(batches) == said


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
