from dataclasses import replace

import numpy as np
import pytest

from c2r.errors import InputError, PlanMismatchError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.prediction import bytes_per_token, predict_traffic, rows_per_rank
from c2r.profiling import CollaborationProfile
from tests.planning.profiles import layer_profile, random_profile


def plan_of(placements, top_k, num_ranks, num_nodes=1):
    return Plan(
        layers=tuple(
            LayerPlan(num_experts=len(placement), top_k=top_k, placement=np.array(placement))
            for placement in placements
        ),
        topology=ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes),
    )


def test_figures_small_enough_to_check_by_hand():
    # 6 tokens use experts 0 and 2, 2 tokens 1 and 2, of four on two ranks.
    profile = CollaborationProfile(layers=(layer_profile([[0, 2], [1, 2]], [6, 2], 4),))
    (layer,) = predict_traffic(profile, plan_of([[0, 1, 0, 1]], 2, 2)).layers
    assert layer.copies_once_per_expert == 2
    assert layer.copies_in_order == 2
    assert layer.copies_placed == (6 * 1 + 2 * 2) / 8
    assert layer.remote_copies_once_per_expert == 1
    assert layer.remote_copies_in_order == 1
    assert layer.remote_copies_placed == 0.625
    assert layer.node_copies_placed == layer.node_copies_in_order == 1
    # Loads 6, 2, 8, 0: 14 and 2 rows as placed, 8 and 8 in order.
    assert layer.rank_load_max_over_mean == 14 / 8
    assert layer.rank_load_max_over_mean_in_order == 1
    assert layer.expert_load_max_over_mean == 2


def test_nodes_are_counted_once():
    profile = CollaborationProfile(layers=(layer_profile([[0, 1], [0, 2]], [1, 3], 4),))
    (layer,) = predict_traffic(profile, plan_of([[0, 2, 1, 3]], 2, 4, 2)).layers
    assert layer.copies_placed == 2
    assert layer.node_copies_placed == (1 * 2 + 3 * 1) / 4


def test_replicas_are_used_and_carry_load():
    # Placed [0, 0, 1, 1, 1, 0]: expert 2 also on rank 0 and expert 0 also on rank 1.
    profile = CollaborationProfile(layers=(layer_profile([[0, 1], [0, 3], [2, 4]], [3, 2, 5], 6),))
    plan = plan_of([[0, 0, 1, 1, 1, 0]], 2, 2)
    (layer,) = plan.layers
    replicated = replace(plan, layers=(replace(layer, replicas=np.array([[2], [0]])),))
    (before,), (after,) = (predict_traffic(profile, p).layers for p in (plan, replicated))
    assert before.copies_placed == (3 * 1 + 2 * 2 + 5 * 1) / 10
    assert after.copies_placed == 1
    assert before.rank_load_max_over_mean == 12 / 10  # rows 3 + 5 and 2 + 10
    assert after.rank_load_max_over_mean == 14 / 10  # rows 6 and 4 + 10


def test_the_report_is_json_with_the_pinned_keys():
    profile = random_profile(3, 12, 4)
    report = predict_traffic(profile, make_plan(profile, num_ranks=4))
    document = report.to_json()
    assert document["num_ranks"] == 4
    assert [layer["layer"] for layer in document["layers"]] == [0, 1, 2]
    pinned = {
        "copies_once_per_expert",
        "copies_in_order",
        "copies_placed",
        "rank_load_max_over_mean",
    }
    assert pinned <= document["mean"].keys()
    assert document["mean"].keys() | {"layer"} == document["layers"][0].keys()
    for key in pinned:
        mean = np.mean([layer[key] for layer in document["layers"]])
        assert document["mean"][key] == pytest.approx(mean)
    assert 1 <= document["mean"]["copies_placed"] <= document["mean"]["copies_in_order"] <= 4


def test_one_rank_needs_no_sets():
    profile = random_profile(1, 12, 4, keep_sets=False)
    mean = predict_traffic(profile, make_plan(profile)).mean
    assert (mean.copies_placed, mean.remote_copies_placed, mean.rank_load_max_over_mean) == (
        1,
        0,
        1,
    )


def test_bytes_are_rows_times_their_size():
    assert bytes_per_token(1.5, 2048) == 1.5 * 2048 * 2
    assert bytes_per_token(2, 10, dtype_bytes=4) == 80


def test_pairs_do_not_tell_copies():
    profile = random_profile(1, 12, 4, keep_sets=False)
    plan = make_plan(profile, num_ranks=4, objective="pairs")
    with pytest.raises(InputError, match="pairs only"):
        predict_traffic(profile, plan)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((3, 8, 2), "the profile has 2 MoE layers, the plan 3"),
        ((2, 9, 2), "layer 0 of the profile has 8 experts with k = 2, of the plan 9 with k = 2"),
        ((2, 8, 3), "layer 0 of the profile has 8 experts with k = 2, of the plan 8 with k = 3"),
    ],
)
def test_a_plan_for_another_model_is_refused(other, message):
    with pytest.raises(PlanMismatchError, match=message):
        predict_traffic(random_profile(2, 8, 2), make_plan(random_profile(*other)))


def test_a_layer_without_tokens_is_named():
    profile = random_profile(2)
    empty = replace(profile.layers[1], load=np.zeros(8, dtype=np.int64))
    with pytest.raises(InputError, match="no tokens in layer 1"):
        predict_traffic(CollaborationProfile(layers=(profile.layers[0], empty)), make_plan(profile))


def test_rows_by_hand():
    ids, placement = np.array([[0, 1], [1, 2]]), np.array([0, 0, 1])
    assert rows_per_rank(ids, placement, 2).tolist() == [2, 1]
    assert rows_per_rank(ids, placement, 3).tolist() == [2, 1, 0]
    assert rows_per_rank(ids[:0], placement, 2).tolist() == [0, 0]


def test_rows_are_the_copies_of_all_tokens():
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(12), (50, 1)), axis=1)[:, :4]
    placement = rng.integers(5, size=12)
    rows = rows_per_rank(ids, placement, 5)
    assert rows.tolist() == [sum(rank in placement[row] for row in ids) for rank in range(5)]
