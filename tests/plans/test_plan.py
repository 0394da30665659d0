from dataclasses import replace

import numpy as np

from c2r.plans import ClusterTopology, LayerPlan, Plan


def layer(replicas=None):
    given = {} if replicas is None else {"replicas": np.array(replicas)}
    return LayerPlan(
        name="mlp.gate",
        num_experts=3,
        top_k=2,
        policy="c2r",
        strength=1.0,
        partners=np.array([[1], [0], [1]]),
        placement=np.array([1, 0, 1]),
        **given,
    )


def test_experts_of_a_rank_are_its_own_then_its_replicas():
    assert [layer().experts_of(rank).tolist() for rank in (0, 1)] == [[1], [0, 2]]
    replicated = layer([[0], [1]])
    assert [replicated.experts_of(rank).tolist() for rank in (0, 1)] == [[1, 0], [0, 2, 1]]


def test_replicas_survive_the_file_and_count_in_the_fingerprint(tmp_path):
    topology = ClusterTopology(num_ranks=2)
    plain = Plan(layers=(layer(),), topology=topology)
    replicated = Plan(layers=(layer([[0], [1]]),), topology=topology)
    assert plain.fingerprint != replicated.fingerprint
    replicated.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded.layers[0].replicas.tolist() == [[0], [1]]
    assert loaded.fingerprint == replicated.fingerprint


def test_a_whole_number_as_strength_is_the_same_plan(tmp_path):
    plan = Plan(layers=(replace(layer(), strength=1),), topology=ClusterTopology(num_ranks=2))
    plan.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").fingerprint == plan.fingerprint


def test_a_layer_is_plain_top_k_on_one_holder_each_where_no_more_is_said(tmp_path):
    plain = LayerPlan(num_experts=3, top_k=2, placement=np.array([1, 0, 1]))
    assert (plain.policy, plain.strength, plain.top_t, plain.replicas.size) == ("top_k", 0.0, 0, 0)
    plan = Plan(layers=(plain,), topology=ClusterTopology(num_ranks=2))
    plan.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").fingerprint == plan.fingerprint
    rows = replace(plain, partners=np.empty((3, 0), dtype=np.int64))
    assert replace(plan, layers=(rows,)).fingerprint == plan.fingerprint


def test_lists_filled_up_where_ranks_differ_in_size_survive_the_file(tmp_path):
    # Rank 0 holds experts 0 and 1, rank 1 only 2: the row of 2 is filled up with itself.
    uneven = replace(
        layer(),
        policy="c2r_placed",
        partners=np.array([[1], [0], [2]]),
        placement=np.array([0, 0, 1]),
    )
    plan = Plan(layers=(uneven,), topology=ClusterTopology(num_ranks=2))
    plan.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").fingerprint == plan.fingerprint


def test_folded_it_has_the_experts_of_neighbours_on_one_rank():
    first = replace(layer(), num_experts=6, placement=np.array([3, 0, 2, 1, 5, 4]))
    plan = Plan(layers=(first,), topology=ClusterTopology(num_ranks=6, num_nodes=2))
    halved = plan.folded(3)
    assert halved.layers[0].placement.tolist() == [1, 0, 1, 0, 2, 2]
    assert (halved.topology.num_ranks, halved.layers[0].policy) == (3, "top_k")
    assert np.bincount(plan.folded(4).layers[0].placement).tolist() == [2, 1, 2, 1]
    assert plan.folded(6) is plan and plan.folded(12) is plan
