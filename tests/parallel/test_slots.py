import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2r.parallel.slots import expert_slots
from c2r.plans import ClusterTopology, LayerPlan

MACHINES = ((2, 1), (3, 1), (4, 1), (4, 2), (6, 3), (8, 2))


def random_layer(rng, num_ranks, top_k):
    placement = rng.permutation(np.arange(2 * num_ranks + 3) % num_ranks)
    others = [np.flatnonzero(placement != rank) for rank in range(num_ranks)]
    num_replicas = rng.integers(1, min(map(len, others)) + 1)
    replicas = [rng.choice(experts, num_replicas, replace=False) for experts in others]
    return LayerPlan(
        num_experts=len(placement), top_k=top_k, placement=placement, replicas=np.stack(replicas)
    )


def slots_of(layer, topology):
    return expert_slots(
        layer.placement,
        topology.num_ranks,
        replicas=layer.replicas,
        ranks_per_node=topology.ranks_per_node,
    )


def test_slots_by_hand():
    slots = expert_slots([1, 0, 1], 2)
    assert slots.slot_of.tolist() == [2, 0, 3, 4]
    assert (slots.num_experts, slots.num_on_rank, slots.rule) == (3, (1, 2), None)
    slots = expert_slots([1, 0, 1], 2, replicas=[[2], [1]])
    assert (slots.num_experts, slots.num_on_rank, slots.num_slots) == (3, (2, 3), 6)
    chosen, num_invalid = slots.choose(torch.tensor([[1, 2], [0, 1], [0, 2], [-1, 3]]))
    # Rank 1 comes first for a sum of 3; in the next two expert 0 is there only; then nowhere.
    assert chosen.view(4, 2).tolist() == [[5, 4], [3, 5], [3, 4], [6, 6]]
    assert num_invalid == 1


@given(
    machine=st.sampled_from(MACHINES),
    top_k=st.integers(1, 7),
    num_tokens=st.integers(0, 50),
    seed=st.integers(0, 10**6),
)
def test_the_rank_is_the_one_that_the_plan_predicts(machine, top_k, num_tokens, seed):
    rng = np.random.default_rng(seed)
    topology = ClusterTopology(num_ranks=machine[0], num_nodes=machine[1])
    layer = random_layer(rng, topology.num_ranks, top_k)
    ids = rng.random((num_tokens, layer.num_experts)).argsort(1)[:, :top_k]
    slots = slots_of(layer, topology)
    chosen = slots.choose(torch.from_numpy(ids))[0].view(num_tokens, top_k)
    ranks = chosen.numpy() // slots.max_per_rank
    assert np.array_equal(ranks, layer.ranks_of(ids, topology))
    for token in range(num_tokens):
        for expert, rank, slot in zip(ids[token], ranks[token], chosen[token], strict=True):
            assert layer.experts_of(rank)[int(slot) % slots.max_per_rank] == expert


@given(top_k=st.integers(2, 7), seed=st.integers(0, 10**6))
def test_experts_that_are_none_do_not_count(top_k, seed):
    rng = np.random.default_rng(seed)
    topology = ClusterTopology(num_ranks=4)
    layer = random_layer(rng, 4, top_k)
    slots = slots_of(layer, topology)
    ids = rng.random((1, layer.num_experts)).argsort(1)[:, :top_k]
    is_chosen = rng.random(top_k) < 0.5
    chosen = slots.choose(torch.from_numpy(np.where(is_chosen, ids, -1)))[0].numpy()
    assert (chosen[~is_chosen] == slots.num_slots).all()
    if is_chosen.any():
        expected = layer.ranks_of(ids[:, is_chosen], topology)[0]
        assert np.array_equal(chosen[is_chosen] // slots.max_per_rank, expected)
