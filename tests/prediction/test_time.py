"""The time model, by hand and against the rows that dispatchers really send."""

from dataclasses import replace

import numpy as np
import pytest

from c2r.errors import InputError, PlanMismatchError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology
from c2r.prediction import (
    DISPATCHERS,
    Cluster,
    ModelSizes,
    Phase,
    Workload,
    best_time,
    predict_time,
)
from c2r.prediction.shares import RankShares
from c2r.prediction.time import bottleneck_weights, layer_time, rest_time
from c2r.profiling import IdProfileBuilder
from tests.planning.instances import random_sets

# A byte a value, a value a token: T tokens are T bytes; 1 GB/s, 1 TFLOP/s.
SIZES = ModelSizes(
    hidden_size=1,
    expert_size=1,
    shared_expert_size=0,
    num_layers=1,
    num_moe_layers=1,
    dense_parameters=0,
    num_matrices=1,
)
ONE = Cluster(
    name="one",
    source="made up",
    num_ranks=2,
    inner_gigabytes=1.0,
    inner_microseconds=0.0,
    outer_gigabytes=0.1,
    outer_microseconds=0.0,
    teraflops=1.0,
    memory_gigabytes_per_second=1e6,
    memory_gigabytes=1.0,
    launch_microseconds=0.0,
)
MILLION = Workload(sizes=SIZES, tokens_per_rank=1_000_000, value_bytes=1.0)


def shares(ranks, num_nodes=1, num_ranks=2):
    ranks = np.array(ranks)
    sets = np.broadcast_to(np.arange(ranks.shape[1]), ranks.shape)
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    return RankShares.of(ranks, sets, np.ones(len(ranks)), topology)


def test_the_rank_that_all_visit_bounds_the_exchange():
    # Of two tokens both visit rank 0 and one rank 1: a million rows arrive at 0 from the other.
    found = layer_time(shares([[0, 0], [0, 1]]), ONE, MILLION)
    assert found.dispatch == found.combine == pytest.approx(1.0)
    assert found.busiest_link == "inside, rank 0"


def test_k_fold_sends_a_row_for_each_expert():
    found = layer_time(shares([[0, 0], [0, 1]]), ONE, MILLION, "k_fold")
    assert found.dispatch == pytest.approx(1.5)


def test_all_gather_sends_every_token():
    found = layer_time(shares([[0, 0], [0, 0]]), ONE, MILLION, "all_gather")
    assert found.dispatch == pytest.approx(1.0)


def test_the_busiest_rank_computes_longest():
    # 1.5 expert rows a token on rank 0, of two million tokens, at 2 FLOPs each.
    found = layer_time(shares([[0, 0], [0, 1]]), ONE, MILLION)
    assert found.compute == pytest.approx(1e3 * 1.5 * 2e6 * 2 / 1e12)
    assert found.busiest_rank == 0


def test_links_between_nodes_are_their_own():
    apart = replace(ONE, num_nodes=2)
    found = layer_time(shares([[0, 0], [0, 1]], num_nodes=2), apart, MILLION)
    assert found.dispatch == pytest.approx(10.0)
    assert found.busiest_link == "between nodes, rank 0"


def test_hierarchical_sends_once_to_a_node_and_then_inside():
    # Every token visits all four ranks of two nodes: once across, and then to the one neighbour,
    # its own rows and those that came across.
    everywhere = shares([[0, 1, 2, 3]], num_nodes=2, num_ranks=4)
    cluster = replace(ONE, num_ranks=4, num_nodes=2)
    found = layer_time(everywhere, cluster, MILLION, "hierarchical")
    assert found.dispatch == pytest.approx(10.0 + 2.0)
    flat = layer_time(everywhere, cluster, MILLION)
    assert flat.dispatch == pytest.approx(20.0)


def test_ranks_that_share_an_adapter_take_the_time_of_their_mean():
    # Ranks 0 and 1 of the first node get 1 and 0 rows a token from each of two ranks elsewhere.
    own = replace(ONE, num_ranks=4, num_nodes=2)
    found = [
        layer_time(shares([[0, 0]], num_nodes=2, num_ranks=4), cluster, MILLION).dispatch
        for cluster in (own, replace(own, is_outer_shared=True))
    ]
    assert found == pytest.approx([20.0, 10.0])


def test_training_sends_twice_and_computes_three_times():
    training = replace(MILLION, phase=Phase.TRAINING)
    once, twice = (layer_time(shares([[0, 0], [0, 1]]), ONE, w) for w in (MILLION, training))
    assert twice.exchange == pytest.approx(2 * once.exchange)
    assert twice.compute == pytest.approx(3 * once.compute)


def test_decoding_reads_the_weights_of_the_experts_that_are_used():
    slow = replace(ONE, memory_gigabytes_per_second=1e-3, teraflops=1e6)
    few = replace(MILLION, tokens_per_rank=1_000_000, phase=Phase.DECODE)
    found = layer_time(shares([[0, 0], [0, 1]]), slow, few)
    assert found.compute == pytest.approx(1e3 * 2 / 1e6)  # two experts of a byte on rank 0


def test_one_chunk_is_the_sum_of_the_parts():
    cluster = replace(ONE, launch_microseconds=1000.0, memory_gigabytes_per_second=10.0)
    found = layer_time(shares([[0, 0], [0, 1]]), cluster, replace(MILLION, phase=Phase.TRAINING))
    parts = found.exchange + found.compute + found.reorder + found.launches
    assert found.total == pytest.approx(parts)


def test_chunks_hide_the_shorter_part():
    # Exchanges of 1 ms each way, work of 6e-3 ms.
    found = layer_time(shares([[0, 0], [0, 1]]), ONE, MILLION, num_chunks=2)
    assert found.total == pytest.approx(found.exchange)
    # Work of 6,000 ms: only the first exchange of half the rows and the last are waited for.
    slow = replace(ONE, teraflops=1e-6)
    found = layer_time(shares([[0, 0], [0, 1]]), slow, MILLION, num_chunks=2)
    assert found.total == pytest.approx(found.compute + 2 * 0.5)


def test_every_chunk_waits_for_its_latency():
    cluster = replace(ONE, inner_microseconds=1000.0)
    whole, halves = (
        layer_time(shares([[0, 0], [0, 1]]), cluster, MILLION, num_chunks=n) for n in (1, 2)
    )
    assert halves.exchange - whole.exchange == pytest.approx(2.0)


def profile(num_experts=16, seed=0):
    sets, counts, _ = random_sets(num_experts, 3, 3000, seed, groups=4)
    builder = IdProfileBuilder(num_experts)
    builder.update(0, np.repeat(sets, counts, axis=0))
    return builder.build({0: "model.layers.0.mlp.gate"})


def test_a_plan_made_for_a_cluster_is_predicted_fastest_there():
    seen, cluster = profile(), replace(ONE, num_ranks=4)
    by_time = make_plan(seen, 4, cluster=cluster, workload=MILLION)
    by_copies = make_plan(seen, 4)
    times = [
        predict_time(seen, plan, cluster, MILLION).total for plan in (None, by_copies, by_time)
    ]
    assert times[2] == min(times) and times[2] < times[0]


def test_weights_are_the_slopes_of_the_time():
    cluster = replace(ONE, num_ranks=4, teraflops=1e-3)
    load, visits, _ = bottleneck_weights(cluster, MILLION)
    base = shares([[0, 0], [1, 2]], num_ranks=4)
    more = replace(base, rows=base.rows + np.array([0.25, 0, 0, 0]))
    slope = layer_time(more, cluster, MILLION).total - layer_time(base, cluster, MILLION).total
    assert slope / 1e3 == pytest.approx(load * 0.25, rel=0.01)
    visited = replace(base, visits=base.visits + 0.1)
    slope = layer_time(visited, cluster, MILLION).total - layer_time(base, cluster, MILLION).total
    assert slope / 1e3 == pytest.approx(visits * 0.1, rel=0.01)


def test_no_plan_saves_more_than_the_share_of_exchange():
    seen, cluster = profile(), replace(ONE, num_ranks=4)
    step = predict_time(seen, None, cluster, MILLION)
    assert 0 < step.exchange_share < 1
    assert step.total == pytest.approx(step.rest + step.layer)
    fastest = best_time(seen, make_plan(seen, 4, cluster=cluster), cluster, MILLION)
    assert fastest.total < step.total


def test_dense_weights_are_read_or_multiplied():
    dense = replace(MILLION, sizes=replace(SIZES, dense_parameters=10))
    assert rest_time(ONE, dense) == pytest.approx(1e3 * 2 * 10 * 1e6 / 1e12)


def test_what_does_not_fit_is_refused():
    seen = profile()
    plan = make_plan(seen, 4)
    with pytest.raises(PlanMismatchError, match="4 ranks on 1 nodes, the cluster one has 2"):
        predict_time(seen, plan, ONE, MILLION)
    with pytest.raises(InputError, match="no dispatcher 'post'"):
        predict_time(seen, None, ONE, MILLION, dispatcher="post")
    with pytest.raises(InputError, match="0 tokens a rank"):
        replace(MILLION, tokens_per_rank=0)


def test_a_rate_for_each_link_is_one_rate_where_they_are_alike():
    visits = shares([[0, 1, 2], [0, 0, 3], [1, 1, 2], [0, 2, 2]], num_nodes=2, num_ranks=4)
    plain = replace(ONE, num_ranks=4, num_nodes=2, outer_microseconds=7.0)
    rates = tuple(
        tuple(1.0 if one // 2 == other // 2 else 0.1 for other in range(4)) for one in range(4)
    )
    by_link = replace(plain, link_gigabytes=rates)
    for dispatcher in DISPATCHERS:
        found, wanted = (layer_time(visits, c, MILLION, dispatcher) for c in (by_link, plain))
        assert found.dispatch == pytest.approx(wanted.dispatch)
        assert found.busiest_link == wanted.busiest_link


def test_a_slow_link_bounds_the_exchange():
    # A million rows go from rank 1 to rank 0 at a tenth of the rate, half a million the other way.
    cluster = replace(ONE, link_gigabytes=((0.0, 1.0), (0.1, 0.0)))
    assert layer_time(shares([[0, 0], [0, 1]]), cluster, MILLION).dispatch == pytest.approx(10.0)
    opposite = replace(ONE, link_gigabytes=((0.0, 0.1), (1.0, 0.0)))
    assert layer_time(shares([[0, 0], [0, 1]]), opposite, MILLION).dispatch == pytest.approx(5.0)
