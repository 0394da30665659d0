import os
from dataclasses import replace

import numpy as np
import pytest

from c2r.errors import InputError, PlanError
from c2r.planning import layers as planning_layers
from c2r.planning import make_plan
from c2r.planning.margin import load_margin
from c2r.plans import ClusterTopology, load_max_over_mean, rank_loads
from c2r.prediction import ModelSizes, Phase, Workload, find_cluster
from c2r.prediction.memory import most_replicas, weight_gigabytes
from c2r.prediction.shares import layer_shares
from c2r.prediction.time import measured_time
from c2r.profiling import CollaborationProfile
from tests.planning.instances import random_sets
from tests.planning.profiles import layer_profile, random_profile

FOUR = find_cluster("h100-8").of_size(4, 1)
SIZES = ModelSizes(
    hidden_size=2880,
    expert_size=2880,
    shared_expert_size=0,
    num_layers=24,
    num_moe_layers=24,
    dense_parameters=1_200_000_000,
)
WORKLOAD = Workload(sizes=SIZES, tokens_per_rank=4096)


def grouped_profile(seed, num_layers=1, num_tokens=4000):
    return CollaborationProfile(
        layers=tuple(
            layer_profile(*random_sets(32, 4, num_tokens, seed=seed + index, groups=4)[:2], 32)
            for index in range(num_layers)
        )
    )


def layer_milliseconds(profile, plan, cluster=FOUR):
    shares = [
        layer_shares(profile, index, layer, cluster.topology)
        for index, layer in enumerate(plan.layers)
    ]
    return measured_time(shares, cluster, WORKLOAD).layer


def test_layers_side_by_side_are_planned_alike():
    profile, seen = grouped_profile(0, num_layers=5), []
    options = {"cluster": FOUR, "workload": WORKLOAD, "replicas": 1}
    one = make_plan(profile, 4, num_threads=1, **options)
    three = make_plan(profile, 4, num_threads=3, on_layer=seen.append, **options)
    assert one.fingerprint == three.fingerprint
    assert seen == [0, 1, 2, 3, 4]


def test_no_layer_is_begun_after_an_error():
    # The bound is below the mean of any placement: the first layer to be planned fails.
    with pytest.raises(PlanError, match="no placement"):
        make_plan(grouped_profile(0, num_layers=4), 4, num_threads=2, max_load=1.0)
    with pytest.raises(InputError, match="give at least 1"):
        make_plan(grouped_profile(0), 4, num_threads=0)


def test_small_layers_take_one_thread(monkeypatch):
    started = []
    pool = planning_layers.ThreadPoolExecutor
    monkeypatch.setattr(
        planning_layers, "ThreadPoolExecutor", lambda *a: started.append(a[0]) or pool(*a)
    )
    make_plan(random_profile(4), 4)
    assert not started
    monkeypatch.setattr(planning_layers, "_WORK_OF_THREADS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    make_plan(random_profile(4), 4)
    assert started == [3]


def test_replicas_that_pay_are_held_alike_in_every_layer():
    profile = grouped_profile(3, num_layers=2)
    slow = find_cluster("hosts-4-10g")
    options = {"num_nodes": 4, "cluster": slow, "workload": WORKLOAD}
    plain = make_plan(profile, 4, **options)
    chosen = make_plan(profile, 4, replicas="auto", **options)
    (number,) = {layer.replicas.shape[-1] for layer in chosen.layers}
    assert number > 0
    held = make_plan(profile, 4, replicas=number, **options)
    assert chosen.fingerprint == held.fingerprint
    for before, after in zip(plain.layers, chosen.layers, strict=True):
        assert np.array_equal(before.placement, after.placement)
    assert layer_milliseconds(profile, chosen, slow) < layer_milliseconds(profile, plain, slow)


def test_no_replica_is_held_where_none_pays():
    slow = replace(FOUR, launch_microseconds=1e6)  # which no replica shortens
    plan = make_plan(grouped_profile(3), 4, cluster=slow, workload=WORKLOAD, replicas="auto")
    assert not plan.layers[0].replicas.size


def test_replicas_keep_to_the_memory():
    own = weight_gigabytes(WORKLOAD, [8] * 24)
    assert own == pytest.approx(2 * (1.2e9 + 24 * 8 * 3 * 2880**2) / 1e9)
    training = Workload(sizes=SIZES, tokens_per_rank=1, phase=Phase.TRAINING)
    assert weight_gigabytes(training, [8] * 24) == pytest.approx(8 * own)
    fitting = most_replicas(FOUR, WORKLOAD, [32] * 24)
    assert weight_gigabytes(WORKLOAD, [8 + fitting] * 24) <= 0.8 * 80
    assert weight_gigabytes(WORKLOAD, [9 + fitting] * 24) > 0.8 * 80


def test_replicas_that_do_not_fit_the_memory_are_refused():
    huge = Workload(
        sizes=ModelSizes(
            hidden_size=2880,
            expert_size=2880 * 40,
            shared_expert_size=0,
            num_layers=1,
            num_moe_layers=1,
            dense_parameters=0,
        ),
        tokens_per_rank=4096,
    )
    profile = grouped_profile(3)
    with pytest.raises(PlanError, match=r"a rank holds 65\.7 GB .* at most 24 replicas"):
        make_plan(profile, 4, cluster=FOUR, workload=huge, replicas=25)
    with pytest.raises(PlanError, match="those that save time"):
        make_plan(profile, 4, replicas="auto")


def test_the_worst_text_is_placed_for():
    texts = [grouped_profile(seed) for seed in (1, 20, 40)]
    pooled = texts[0].merge(texts[1]).merge(texts[2])
    options = {"cluster": FOUR, "workload": WORKLOAD}
    by_mean = make_plan(pooled, 4, **options)
    by_worst = make_plan(pooled, 4, worst_of=texts, **options)
    times = [max(layer_milliseconds(text, plan) for text in texts) for plan in (by_mean, by_worst)]
    assert times[1] < times[0]
    assert by_worst.provenance["worst_of"] == 3


def test_the_bound_holds_in_each_text():
    texts = [grouped_profile(seed) for seed in (1, 20)]
    plan = make_plan(texts[0].merge(texts[1]), 4, worst_of=texts, max_load=1.2)
    for text in texts:
        load = rank_loads(text.layers[0].load, plan.layers[0].placement, 4)
        assert load_max_over_mean(load) <= 1.2 + 1e-9


def test_texts_of_several_models_are_refused():
    profile = random_profile(2)
    with pytest.raises(PlanError, match="another model"):
        make_plan(profile, 4, worst_of=[profile, random_profile(3)])
    with pytest.raises(PlanError, match="routing sets"):
        make_plan(profile, 4, worst_of=[profile], objective="pairs")


def test_the_margin_is_that_of_the_sampling_error():
    topology = ClusterTopology(num_ranks=2)
    sets = np.array([[0, 1], [0, 2], [1, 3], [2, 3]])
    layer = layer_profile(sets, [2500, 2500, 2500, 2500], 4)
    # A token has 2, 1, 1 or 0 experts on a rank: variance 1/2, mean 1.
    expected = 2 * np.sqrt(0.5 * 5 / 10_000)
    found = load_margin(layer, *layer.routing_sets(), topology, 1.2)
    assert found == pytest.approx(expected)
    assert load_margin(layer, *layer.routing_sets(), topology, 1.01) == pytest.approx(0.005)


def test_a_bound_is_kept_with_a_margin_where_it_can_be():
    profile = grouped_profile(5)
    plan = make_plan(profile, 4, max_load=1.3)
    margin = plan.provenance["load_margin"]
    assert 0 < margin <= 0.15
    assert plan.provenance["predicted"]["rank_load_max_over_mean"] <= 1.3 - margin + 1e-9
    assert make_plan(profile, 4).provenance["load_margin"] == 0
