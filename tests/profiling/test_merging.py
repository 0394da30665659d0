"""Profiles in many files, merged layer by layer."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from c2r.cli import run_command
from c2r.errors import ArtifactError, InputError
from c2r.profiling import CollaborationProfile, merge_all, merge_files, merging
from tests.reporting.profiles import clustered_profile

NUM_FILES = 50


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    found = []
    for index in range(NUM_FILES):
        part = clustered_profile(
            num_layers=2, num_experts=16, top_k=3, num_tokens=40 + index, seed=index
        )
        part = replace(part, provenance={"text": index, "complete": True})
        part.save(folder / f"part{index:02}")
        found.append(folder / f"part{index:02}")
    return found


def assert_same_counts(ours, theirs):
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert (a.name, a.num_tokens) == (b.name, b.num_tokens)
        for name in ("coactivation", "load"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        for x, y in zip(a.routing_sets(), b.routing_sets(), strict=True):
            assert np.array_equal(x, y)


def test_it_is_the_merge_of_all(paths):
    merged = merge_files(paths)
    one_by_one = CollaborationProfile.load(paths[0])
    for path in paths[1:]:
        one_by_one = one_by_one.merge(CollaborationProfile.load(path))
    assert_same_counts(merged, one_by_one)
    assert merged.num_tokens == sum(range(40, 40 + NUM_FILES))
    assert merged.provenance == {"text": 0, "complete": True}
    assert_same_counts(merge_files(paths[:1]), CollaborationProfile.load(paths[0]))


def test_profiles_in_memory_are_merged_as_their_files_are(paths):
    held = [CollaborationProfile.load(path) for path in paths[:5]]
    merged = merge_all(held, seed=3)
    assert_same_counts(merged, merge_files(paths[:5], seed=3))
    assert merged.provenance == {"text": 0, "complete": True}
    other = clustered_profile(num_layers=1, num_experts=16, top_k=3, num_tokens=40)
    with pytest.raises(InputError, match="cannot merge profiles of different models"):
        merge_all([held[0], other])


def test_few_layers_are_held_at_a_time(paths, monkeypatch):
    read, held, most = merging.read_layer, [], []

    def counted(*arguments):
        layer = read(*arguments)
        held.append(weakref.ref(layer.coactivation))
        most.append(sum(entry() is not None for entry in held))
        return layer

    monkeypatch.setattr(merging, "read_layer", counted)
    totals = []
    merge_files(paths, on_layer=totals.append)
    assert len(most) == 2 * NUM_FILES and max(most) <= 3  # the merges of a tree hold its height
    assert totals == [2 * NUM_FILES] * (2 * NUM_FILES)


def test_one_that_was_interrupted_leaves_the_whole_so(paths, tmp_path):
    part = CollaborationProfile.load(paths[3])
    replace(part, provenance={"complete": False}).save(tmp_path / "part")
    assert merge_files([*paths[:3], tmp_path / "part"]).provenance["complete"] is False


def test_all_that_are_damaged_are_named(paths, tmp_path):
    broken = []
    for number, path in enumerate(paths[:5]):
        broken.append(tmp_path / f"broken{number}")
        broken[-1].write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"5 of 55.*broken0.*broken1.*broken2.*and 2 more"):
        merge_files([*paths, *broken])
    with pytest.raises(ArtifactError, match=r"broken0 is truncated"):
        merge_files([*paths, broken[0]])
    with pytest.raises(ArtifactError, match="no such"):
        merge_files([*paths, tmp_path / "no such"])


def test_a_value_that_cannot_be_is_found_when_its_layer_is_read(paths, tmp_path):
    profile = CollaborationProfile.load(paths[0])
    layer = replace(profile.layers[1], load=profile.layers[1].load - 10**6)
    replace(profile, layers=(profile.layers[0], layer)).save(tmp_path / "odd")
    with pytest.raises(ArtifactError, match=r"odd lacks or damages .*load has counts below 0"):
        merge_files([*paths[:2], tmp_path / "odd"])


def test_files_of_other_models_are_named(paths, tmp_path):
    other = clustered_profile(num_layers=2, num_experts=12, top_k=3, num_tokens=9)
    other.save(tmp_path / "other")
    with pytest.raises(InputError, match=r"part00 and .*other of different models.*16.*12"):
        merge_files([*paths, tmp_path / "other"])
    tuned = replace(
        CollaborationProfile.load(paths[0]), provenance={"model_fingerprint": {"weights": "x"}}
    )
    tuned.save(tmp_path / "tuned")
    with pytest.raises(InputError, match=r"part00 and .*tuned: their model fingerprints differ"):
        merge_files([*paths, tmp_path / "tuned"])


def test_a_plan_of_many_profiles_is_one_of_their_merge(paths, tmp_path, capsys):
    merge_files(paths).save(tmp_path / "merged")
    for name, profiles in (("many", paths), ("one", [tmp_path / "merged"])):
        out = ["--ranks", "4", "--out", str(tmp_path / name)]
        assert run_command(["plan", *map(str, profiles), *out]) == 0
    assert (tmp_path / "many").read_bytes() == (tmp_path / "one").read_bytes()
