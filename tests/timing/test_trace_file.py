"""Routing of files: what is planned from is not timed, and what does not fit is refused."""

import numpy as np
import pytest

from c2r.errors import InputError, PlanError
from c2r.plans import ClusterTopology
from c2r.timing import Placing, read_routing, record_file

PLACING = Placing(topology=ClusterTopology(num_ranks=2), max_load=1.5)


def ids(num_tokens, num_layers=3, num_experts=8, k=2, seed=0):
    rng = np.random.default_rng(seed)
    every = np.tile(np.arange(num_experts), (num_tokens, num_layers, 1))
    return rng.permuted(every, axis=2)[:, :, :k]


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "routing.npz", **arrays)
    return tmp_path / "routing.npz"


def test_every_other_sequence_is_planned(tmp_path):
    path = saved(tmp_path, experts=ids(6), lengths=np.array([1, 2, 3]))
    assert read_routing(path).is_planned.tolist() == [True, False, False, True, True, True]


def test_without_sequences_the_first_half_is_planned(tmp_path):
    assert (
        read_routing(saved(tmp_path, experts=ids(5))).is_planned.tolist()
        == [True] * 2 + [False] * 3
    )


def test_weights_are_as_recorded_or_equal(tmp_path):
    weights = np.random.default_rng(1).random((6, 3, 2)).astype(np.float16)
    found = read_routing(saved(tmp_path, experts=ids(6), weights=weights))
    assert np.array_equal(found.weights, weights.swapaxes(0, 1).astype(np.float32))
    assert (read_routing(saved(tmp_path, experts=ids(6))).weights == 0.5).all()


def test_an_array_for_each_layer(tmp_path):
    experts = ids(6, num_layers=12)
    layers = {f"layers.{layer}": experts[:, layer] for layer in (10, 2, 0)}
    found = read_routing(saved(tmp_path, **layers))
    assert np.array_equal(found.expert_ids, experts[:, [0, 2, 10]].swapaxes(0, 1))


def test_layers_are_kept_evenly(tmp_path):
    experts = ids(6, num_layers=8)
    found = read_routing(saved(tmp_path, experts=experts), num_layers=2)
    assert np.array_equal(found.expert_ids, experts[:, [0, 4]].swapaxes(0, 1))


def test_planned_tokens_are_not_timed(tmp_path):
    """The experts of planned tokens are of two groups; those of the others mix them."""
    planned = np.array([[0, 2], [1, 3]] * 50)[:, None]
    timed = np.array([[0, 1], [2, 3]] * 50)[:, None]
    path = saved(tmp_path, experts=np.concatenate([planned, timed]))
    found = record_file(read_routing(path), 20, 100, PLACING)
    (placement,) = found.placement
    assert placement[0] == placement[2] != placement[1] == placement[3]
    (kept,) = found.routings["top_k"].expert_ids
    assert kept.shape == (20, 2) and {tuple(row) for row in kept} <= {(0, 1), (2, 3)}
    assert found.routings["top_k"].loss is None and found.max_load == 1.5


def test_replicas_are_planned_too(tmp_path):
    """Expert 0 is chosen most, and with each other: the rank that does not own it holds it too."""
    chosen = np.array([[0, 1], [0, 1], [2, 3], [2, 3], [0, 2], [0, 3]] * 50)[:, None]
    topology = ClusterTopology(num_ranks=2)
    routing = read_routing(saved(tmp_path, experts=chosen))
    alone, held = (
        record_file(routing, 20, 100, Placing(topology=topology, max_load=1.5, replicas=number))
        for number in (0, 1)
    )
    assert alone.replicas.shape == (1, 2, 0) and held.replicas.shape == (1, 2, 1)
    assert np.array_equal(alone.placement, held.placement)
    (placement,), (replicas,) = held.placement, held.replicas
    assert replicas[1 - placement[0]].tolist() == [0]


def test_the_first_bound_that_can_be_kept(tmp_path):
    """Two of three tokens choose experts 0 and 1: the busiest of 4 ranks has 4/3 of the mean."""
    routing = read_routing(saved(tmp_path, experts=np.array([[[0, 1]], [[0, 1]], [[2, 3]]] * 90)))
    topology = ClusterTopology(num_ranks=4)
    assert record_file(routing, 9, 135, Placing(topology=topology)).max_load == 1.5
    with pytest.raises(PlanError):
        record_file(routing, 9, 135, Placing(topology=topology, max_load=1.1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"experts": ids(6), "lengths": np.array([1, 2])}, "add up to 3 tokens, but experts has 6"),
        ({"experts": ids(6), "lengths": np.array([7, -1])}, "add up to 6 tokens"),
        ({"experts": ids(6), "lengths": np.full(4, 1.5)}, r"add up to float64 \[4\]"),
        ({"experts": ids(6), "weights": np.ones((6, 2))}, r"weights are float64 \[6, 2\]"),
        ({"experts": ids(6), "weights": np.full((6, 3, 2), np.nan)}, "no finite number"),
        ({"experts": ids(6), "lengths": np.array([6], "m8[s]")}, "add up to timedelta"),
        ({"experts": ids(6).astype("m8[s]")}, "experts are timedelta"),
        ({"experts": ids(6) - 1}, "experts are -1 to 6"),
        ({"experts": ids(6) * 10**6}, "experts are 0 to 7000000"),
        ({"experts": ids(6)[:, :, :0]}, "has 0 bytes"),
        ({"experts": np.ones((6, 3, 2))}, "experts are float64"),
        ({"experts": ids(6)[:, 0]}, r"int64 \[6, 2\]"),
        ({"prompts": np.ones(6)}, "holds prompts"),
        ({"0": ids(6)[:, 0], "1": ids(5)[:, 0]}, "all of one shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        read_routing(saved(tmp_path, **arrays))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_routing(tmp_path / "none.npz")


def test_too_few_tokens(tmp_path):
    with pytest.raises(InputError, match=r"has 3 tokens to time .* but 4 are needed"):
        record_file(read_routing(saved(tmp_path, experts=ids(6))), 4, 10, PLACING)
