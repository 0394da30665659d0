import itertools

import numpy as np
import pytest
import torch

from c2r.errors import ArtifactError, InputError
from c2r.profiling import CollaborationProfile
from c2r.traces import LayerTrace, ProfileBuilder, RoutingTrace, ScoreKind, score_mass


def make_trace(tokens=40, num_experts=(6, 8), k=(2, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for index, (experts, top_k) in enumerate(zip(num_experts, k, strict=True)):
        scores = torch.rand(tokens, experts, generator=generator).softmax(-1)
        layers.append(
            LayerTrace(
                name=f"layers.{index}.gate",
                expert_ids=scores.topk(top_k).indices,
                weights=None,
                scores=scores,
                score_kind=ScoreKind.PROBABILITIES,
            )
        )
    return RoutingTrace(layers=tuple(layers))


def build(*traces, profile=None, **options):
    builder = ProfileBuilder(profile, **options)
    for trace in traces:
        builder.update(trace)
    return builder.build({"model_fingerprint": "m"})


def assert_same(first, second):
    for a, b in zip(first.layers, second.layers, strict=True):
        assert (a.name, a.num_experts, a.top_k, a.num_tokens) == (
            b.name,
            b.num_experts,
            b.top_k,
            b.num_tokens,
        )
        for field in ("coactivation", "load", "top1"):
            assert np.array_equal(getattr(a, field), getattr(b, field))
        assert np.allclose(a.score_mass, b.score_mass)
        for ours, theirs in zip(a.routing_sets(), b.routing_sets(), strict=True):
            assert np.array_equal(ours, theirs)


def test_counts_agree_with_a_loop():
    trace = make_trace()
    profile = build(trace)
    assert (profile.num_layers, profile.num_experts, profile.top_k) == (2, 8, 3)
    for layer, counted in zip(trace.layers, profile.layers, strict=True):
        pairs = np.zeros_like(counted.coactivation)
        mass = np.zeros_like(counted.score_mass)
        for ids, scores in zip(layer.expert_ids.tolist(), layer.scores.numpy(), strict=True):
            for i, j in itertools.permutations(ids, 2):
                pairs[i, j] += 1
            mass[ids[0]] += scores
        assert np.array_equal(counted.coactivation, pairs)
        assert np.allclose(counted.score_mass, mass, rtol=1e-5)
        assert counted.load.sum() == 40 * counted.top_k and counted.top1.sum() == 40
        sets, counts = counted.routing_sets()
        assert counts.sum() == 40
        assert {tuple(row) for row in sets.tolist()} == {
            tuple(sorted(row)) for row in layer.expert_ids.tolist()
        }


def test_merge_of_parts_is_the_profile_of_the_whole():
    first, second = make_trace(seed=1), make_trace(seed=2)
    assert_same(build(first).merge(build(second)), build(first, second))


def test_goes_on_from_a_partial_profile():
    first, second = make_trace(seed=1), make_trace(seed=2)
    assert_same(build(second, profile=build(first)), build(first, second))


def test_a_profile_that_nothing_is_added_to_is_told_what_it_is_now():
    first = build(make_trace())
    again = ProfileBuilder(first).build({"complete": True})
    assert_same(again, first)
    assert again.provenance == {"complete": True}
    assert ProfileBuilder().build({"complete": True}) is None


def test_file_round_trip_exact_and_sampled(tmp_path):
    for capacity in (1000, 5):
        profile = build(make_trace(), capacity=capacity)
        profile.save(tmp_path / "p.safetensors")
        loaded = CollaborationProfile.load(tmp_path / "p.safetensors")
        assert_same(profile, loaded)
        assert loaded.provenance == profile.provenance
        assert loaded.layers[1].sets.is_exact == (capacity == 1000)
        assert loaded.layers[1].sets.sample_size == (40 if capacity == 1000 else 5)


def test_profiles_of_different_models_do_not_merge():
    with pytest.raises(InputError, match=r"2 layers of 6/8 experts against 1 layers of 6 experts"):
        build(make_trace()).merge(build(make_trace(num_experts=(6,), k=(2,))))
    other = CollaborationProfile(
        layers=build(make_trace()).layers, provenance={"model_fingerprint": "other"}
    )
    with pytest.raises(InputError, match='fingerprints differ, "m" against "other"'):
        build(make_trace()).merge(other)


def test_a_profile_file_without_a_field_is_refused(tmp_path):
    from c2r.artifacts import Artifact, write_artifact

    artifact = build(make_trace()).to_artifact()
    arrays = {name: a for name, a in artifact.arrays.items() if name != "layers.1.load"}
    path = tmp_path / "p.safetensors"
    write_artifact(path, Artifact(kind="profile", header=artifact.header, arrays=arrays))
    with pytest.raises(ArtifactError, match=r"layers\.1\.load"):
        CollaborationProfile.load(path)


def test_mass_of_scores():
    logits = torch.tensor([[0.0, 0.0]])
    assert score_mass(logits, ScoreKind.LOGITS).tolist() == [[0.5, 0.5]]
    gates = torch.tensor([[0.7, -0.1, -torch.inf]])
    assert torch.equal(score_mass(gates, ScoreKind.GATES), torch.tensor([[0.7, 0.0, 0.0]]))


def test_an_empty_batch_counts_nothing():
    trace = make_trace()
    assert_same(build(trace, make_trace(tokens=0)), build(trace))


def test_a_sampled_profile_is_the_same_for_a_seed(monkeypatch):
    monkeypatch.setattr("c2r.profiling.sets._BUFFERED_TOKENS", 100)
    traces = [make_trace(tokens=90, seed=seed) for seed in range(8)]
    first, again, other = (build(*traces, capacity=5, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.layers, again.layers, other.layers, strict=True):
        assert (a.sets.num_tokens, a.sets.sample_size, a.sets.is_exact) == (720, 5, False)
        assert np.array_equal(a.sets.experts, b.sets.experts)
        assert np.array_equal(a.sets.priorities, b.sets.priorities)
        assert not np.array_equal(a.sets.priorities, c.sets.priorities)
        assert a.sets.priorities.max() < 0.1  # the 5 lowest of 720


def test_the_tokens_of_a_trace_are_those_of_a_layer_that_ran():
    trace = make_trace()
    idle = make_trace(tokens=0).layers[0]
    assert RoutingTrace(layers=(idle, trace.layers[1])).num_tokens == 40
    assert build(RoutingTrace(layers=(idle, trace.layers[1]))).num_tokens == 40
