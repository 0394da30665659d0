from dataclasses import replace

import numpy as np
import pytest

from c2r.errors import PlanError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, Plan, mean_copies, mean_node_copies
from c2r.prediction import predict_traffic
from c2r.profiling import CollaborationProfile, LayerProfile
from tests.planning.profiles import layer_profile, random_profile

PREDICTED = {"copies": "copies_placed", "rank_load_max_over_mean": "rank_load_max_over_mean"}
PAIRS = [[0, 1], [2, 3], [0, 2]]


def test_a_plan_small_enough_to_check_by_hand():
    profile = CollaborationProfile(layers=(layer_profile(PAIRS, [5, 4, 1], 4),))
    (layer,) = make_plan(profile, num_ranks=2, top_t=2).layers
    assert layer.partners.tolist() == [[1, 2], [0, 2], [3, 0], [2, 0]]
    assert layer.placement.tolist() == [0, 0, 1, 1]
    assert (layer.policy, layer.strength, layer.top_t) == ("c2r", 2.0, 2)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "top_t"), [(60, 4, 30), (8, 2, 4), (4, 4, 3), (2, 1, 1), (3, 3, 2)]
)
def test_half_of_the_experts_are_partners_unless_said(num_experts, top_k, top_t):
    profile = random_profile(1, num_experts, top_k)
    assert make_plan(profile, policy="c2r").layers[0].top_t == top_t


def test_partners_may_differ_in_number_per_layer():
    plan = make_plan(random_profile(3), top_t=[1, 7, 3])
    assert [layer.top_t for layer in plan.layers] == [1, 7, 3]


def test_layers_may_differ_in_experts_and_k():
    layers = random_profile(1, 8, 2).layers + random_profile(1, 12, 3).layers
    plan = make_plan(CollaborationProfile(layers=layers), num_ranks=4)
    assert [layer.placement.shape for layer in plan.layers] == [(8,), (12,)]


def test_the_plan_says_where_it_comes_from():
    profile = random_profile(model_fingerprint="abc", text="a.txt")
    plan = make_plan(profile, num_ranks=2, seed=7)
    assert plan.provenance["model_fingerprint"] == "abc"
    assert plan.provenance["profile"]["text"] == "a.txt"
    assert plan.provenance["num_tokens"] == profile.num_tokens
    assert (plan.provenance["seed"], plan.provenance["objective"]) == (7, "sets")
    copies = [
        mean_copies(*layer.routing_sets(), made.placement)
        for layer, made in zip(profile.layers, plan.layers, strict=True)
    ]
    assert plan.provenance["predicted"]["copies"] == pytest.approx(np.mean(copies))


def test_a_profile_that_does_not_know_its_model_gives_a_plan_that_does_not():
    assert "model_fingerprint" not in make_plan(random_profile()).provenance


def test_a_plan_survives_the_disk(tmp_path):
    plan = make_plan(random_profile(), num_ranks=4, num_nodes=2, max_load=2.0)
    plan.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").fingerprint == plan.fingerprint


def test_the_same_seed_gives_the_same_plan_and_progress_is_told():
    profile, seen = random_profile(2, 14, 3), []
    first = make_plan(profile, 3, seed=5, on_layer=seen.append)
    assert first.fingerprint == make_plan(profile, 3, seed=5).fingerprint
    assert seen == [0, 1]


def test_pairs_are_placed_by_pairs_only_when_asked():
    profile = random_profile(1, 12, 3, keep_sets=False)
    with pytest.raises(PlanError, match=r"pairs only.*k = 3.*objective=\"pairs\""):
        make_plan(profile, num_ranks=4)
    plan = make_plan(profile, num_ranks=4, objective="pairs")
    assert np.bincount(plan.layers[0].placement).tolist() == [3] * 4
    assert "copies" not in plan.provenance["predicted"]
    assert make_plan(profile).layers[0].placement.tolist() == [0] * 12


def test_replicas_save_copies_and_are_part_of_the_prediction():
    profile = random_profile(2, 16, 4)
    plain, replicated = make_plan(profile, 4), make_plan(profile, 4, replicas=1)
    for before, after in zip(plain.layers, replicated.layers, strict=True):
        assert before.placement.tolist() == after.placement.tolist()
        assert after.replicas.shape == (4, 1)
        assert [len(after.experts_of(rank)) for rank in range(4)] == [5] * 4
    for key in ("copies", "rank_load_max_over_mean"):
        expected = getattr(predict_traffic(profile, replicated).mean, PREDICTED[key])
        assert replicated.provenance["predicted"][key] == pytest.approx(expected)
        assert expected <= plain.provenance["predicted"][key]


def test_the_traffic_that_is_handed_on_is_what_would_be_predicted_again():
    profile, handed = random_profile(2, 16, 4), []
    for options in ({}, {"num_nodes": 2, "replicas": 1}, {"policy": "priced"}):
        plan = make_plan(profile, 4, on_traffic=handed.append, **options)
        assert handed.pop() == predict_traffic(profile, plan)
    pairs = random_profile(1, 12, 3, keep_sets=False)
    make_plan(pairs, num_ranks=4, objective="pairs", on_traffic=handed.append)
    assert handed == []


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_the_sets_of_a_layer_are_fetched_once(num_ranks, monkeypatch):
    profile, fetched = random_profile(2, 16, 4), []
    routing_sets = LayerProfile.routing_sets
    monkeypatch.setattr(
        LayerProfile, "routing_sets", lambda layer: fetched.append(layer) or routing_sets(layer)
    )
    make_plan(profile, num_ranks, replicas=num_ranks // 4)
    assert fetched == ([] if num_ranks == 1 else list(profile.layers))


def test_replicas_need_sets():
    profile = random_profile(1, 12, 3, keep_sets=False)
    with pytest.raises(PlanError, match=r"pairs only.*plan without replicas"):
        make_plan(profile, num_ranks=4, objective="pairs", replicas=1)


def test_the_cost_of_nodes_decides_between_nodes_and_ranks():
    profile = random_profile(1, 16, 4)
    sets, counts = profile.layers[0].routing_sets()
    topology = ClusterTopology(num_ranks=8, num_nodes=2)

    def figures(cost):
        placement = make_plan(profile, 8, num_nodes=2, inter_node_cost=cost).layers[0].placement
        return (
            mean_copies(sets, counts, placement),
            mean_node_copies(sets, counts, placement, topology),
        )

    (flat, flat_nodes), (steep, steep_nodes) = figures(0.0), figures(100.0)
    assert flat <= steep and steep_nodes < flat_nodes


def test_pairs_are_sets_at_k_2():
    with_sets, without = (random_profile(2, 8, 2, keep_sets=keep) for keep in (True, False))
    assert make_plan(with_sets, 4).fingerprint == make_plan(without, 4).fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_t": 1}, "T = 1 does not fit 12 experts with k = 3; choose T from 2 to 11"),
        ({"top_t": 12}, "T = 12 does not fit 12 experts with k = 3; choose T from 2 to 11"),
        ({"top_t": [3]}, "1 values of T for 2 layers; give one number, or 2"),
        ({"num_ranks": 13}, "12 experts cannot be placed on 13 ranks; choose at most 12 ranks"),
        ({"num_ranks": 4, "num_nodes": 3}, "4 ranks cannot be split evenly over 3 nodes"),
        ({"num_ranks": 0}, "0 ranks on 1 nodes; both must be at least 1"),
        ({"objective": "cut"}, "objective 'cut' is unknown; choose time or sets or pairs"),
        ({"num_ranks": 2, "max_load": 0.5}, "max_load = 0.5"),
        ({"num_ranks": 2, "inter_node_cost": -1.0}, "inter_node_cost = -1; choose 0 or more"),
        ({"num_ranks": 2, "replicas": 7}, "7 replicas per rank do not fit 12 experts, 6 of which"),
        ({"replicas": 1}, "1 replicas per rank do not fit 12 experts, 12 of which"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(options, message):
    with pytest.raises(PlanError) as error:
        make_plan(random_profile(2, 12, 3), **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_profile_is_refused():
    layer = random_profile(1).layers[0]
    empty = replace(layer, load=np.zeros_like(layer.load))
    with pytest.raises(PlanError, match="no tokens in 1 of 2 layers"):
        make_plan(CollaborationProfile(layers=(layer, empty)))
