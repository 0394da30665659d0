import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2r.errors import InputError
from c2r.ops.coactivation import count_pairs
from c2r.profiling import CollaborationProfile, IdProfileBuilder
from c2r.profiling.sets import RoutingSets
from c2r.traces import LayerTrace, ProfileBuilder, RoutingTrace, ScoreKind


def choices(num_tokens: int, num_experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).random((num_tokens, num_experts))
    return np.argsort(scores, axis=1)[:, :top_k]


def test_counts_written_out() -> None:
    builder = IdProfileBuilder(4, is_ordered=True)
    builder.update(3, np.array([[2, 0], [2, 1]]))
    builder.update(3, np.array([[0, 2]]))
    layer = builder.build({3: "layers.3.gate"}).layers[0]
    assert (layer.name, layer.num_experts, layer.top_k, layer.num_tokens) == (
        "layers.3.gate", 4, 2, 3,
    )  # fmt: skip
    assert layer.coactivation[2].tolist() == [2, 1, 0, 0] and layer.coactivation.sum() == 6
    assert layer.load.tolist() == [2, 1, 3, 0]
    assert layer.top1 is not None and layer.top1.tolist() == [1, 0, 2, 0]
    assert layer.score_mass is None
    sets = layer.routing_sets()
    assert sets is not None and [array.tolist() for array in sets] == [[[0, 2], [1, 2]], [2, 1]]


def test_against_the_reference_in_pieces_of_any_size() -> None:
    ids = choices(40_000, 24, 5)
    whole, pieces = IdProfileBuilder(24), IdProfileBuilder(24)
    whole.update(0, ids)
    for start in range(0, len(ids), 999):
        pieces.update(0, ids[start : start + 999].astype(np.int16))
    expected = count_pairs(torch.from_numpy(ids), 24).numpy()
    for builder in (whole, pieces):
        layer = builder.build({0: ""}).layers[0]
        assert np.array_equal(layer.coactivation, expected)
        assert np.array_equal(layer.load, np.bincount(ids.ravel(), minlength=24))
        assert layer.top1 is None
        sets = layer.routing_sets()
        assert sets is not None
        assert np.array_equal(sets[0], np.unique(np.sort(ids, axis=1), axis=0))


def test_a_layer_of_unordered_ids_can_be_saved(tmp_path) -> None:
    builder = IdProfileBuilder(8)
    builder.update(1, choices(50, 8, 3))
    builder.build({1: ""}, {"format": "x"}).save(tmp_path / "p.safetensors")
    layer = CollaborationProfile.load(tmp_path / "p.safetensors").layers[0]
    assert layer.top1 is None and layer.score_mass is None and layer.sets is not None


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[0, 4]], "from 0 to 4 .* 4 experts"),
        ([[-1, 2]], "from -1 to 2"),
        ([[1, 1]], "twice"),
        ([[0, 1, 2]], "3 experts per token in layer 0, 2 before"),
    ],
)
def test_ids_that_cannot_be_count_nothing(ids: list[list[int]], words: str) -> None:
    builder = IdProfileBuilder(4)
    builder.update(0, np.array([[0, 1]]))
    with pytest.raises(InputError, match=words):
        builder.update(0, np.array(ids))
    assert builder.num_tokens == 1
    with pytest.raises(InputError, match="no tokens"):
        IdProfileBuilder(4).build({})


@given(
    shape=st.tuples(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_ids_alone_and_traces_count_the_same(shape: tuple[int, int, int], seed: int) -> None:
    num_tokens, num_experts, top_k = shape
    top_k = min(top_k, num_experts)
    scores = torch.rand(num_tokens, num_experts, generator=torch.manual_seed(seed))
    ids = scores.topk(top_k).indices
    traced, alone = ProfileBuilder(), IdProfileBuilder(num_experts, is_ordered=True)
    for part in (slice(0, 20), slice(20, None)):
        layer = LayerTrace(
            name="",
            expert_ids=ids[part],
            weights=None,
            scores=scores[part],
            score_kind=ScoreKind.PROBABILITIES,
        )
        traced.update(RoutingTrace(layers=(layer,)))
        alone.update(0, ids[part].numpy())
    assert traced.num_tokens == alone.num_tokens == num_tokens
    if num_tokens == 0:
        return
    a, b = traced.build().layers[0], alone.build({0: ""}).layers[0]
    for name in ("coactivation", "load", "top1"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    for ours, theirs in zip(a.routing_sets(), b.routing_sets(), strict=True):
        assert np.array_equal(ours, theirs)


def test_adding_while_sampling_is_a_uniform_sample_of_all() -> None:
    """Every token has the same chance to be in the sample, however late it came."""
    rng = np.random.default_rng(1)
    sets = RoutingSets.empty(2, capacity=1_000)
    for part in range(10):  # all sets are distinct; the first expert tells the part
        ids = np.stack([np.full(2_000, part), 10 + np.arange(2_000)], axis=1)
        sets = sets.add(ids, rng)
    assert (sets.num_tokens, sets.sample_size, sets.is_exact) == (20_000, 1_000, False)
    shares = np.bincount(sets.experts[:, 0], minlength=10)
    assert (np.abs(shares - 100) < 45).all(), shares  # 4.7 standard deviations
