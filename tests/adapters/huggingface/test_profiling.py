"""A profile that is counted in several goes is the one that is counted in one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2r.adapters.huggingface import profile
from c2r.adapters.huggingface.taps import profiling
from c2r.errors import InputError
from c2r.profiling import CollaborationProfile
from tests.adapters.huggingface.checks import token_ids
from tests.adapters.huggingface.families import FAMILIES

MODEL = {family.name: family for family in FAMILIES}["qwen2_moe"].model()
BATCHES = [{"input_ids": token_ids(seed)} for seed in range(4)]
EACH = token_ids().numel()
REQUEST = {"text": "a.txt", "sizes": (2, 24)}


def interrupted(path: Path, after: int, **options: Any) -> CollaborationProfile:
    """What is left in `path` by a run that Ctrl-C ends after so many batches."""

    def interrupt(num_tokens: int) -> None:
        if num_tokens == after * EACH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(MODEL, BATCHES, on_batch=interrupt, out=path, **options)
    return CollaborationProfile.load(path)


def resumed(path: Path, **options: Any) -> tuple[CollaborationProfile, list[int], list[int]]:
    """The profile, the tokens that it went on from if it did, and those after each batch."""
    begun: list[int] = []
    counted: list[int] = []
    calls: Any = {"on_batch": counted.append, "on_resume": begun.append}
    return profile(MODEL, iter(BATCHES), out=path, **calls, **options), begun, counted


def assert_same(found: CollaborationProfile, expected: CollaborationProfile) -> None:
    for a, b in zip(found.layers, expected.layers, strict=True):
        assert (a.name, a.num_tokens) == (b.name, b.num_tokens)
        for name in ("coactivation", "load", "top1"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert np.allclose(a.score_mass, b.score_mass)
        for ours, theirs in zip(a.routing_sets(), b.routing_sets(), strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_profile_goes_on_where_it_stopped(after: int, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    partial = interrupted(path, after, request=REQUEST)
    assert (partial.num_tokens, partial.provenance["complete"]) == (after * EACH, False)
    found, begun, counted = resumed(path, request=REQUEST)
    assert begun == [after * EACH]
    assert counted == [number * EACH for number in range(after + 1, 5)]
    undisturbed = profile(MODEL, BATCHES, request=REQUEST)
    for whole in (found, CollaborationProfile.load(path)):
        assert_same(whole, undisturbed)
        assert whole.provenance == undisturbed.provenance
        assert (whole.provenance["complete"], whole.provenance["batches"]) == (True, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"request": {**REQUEST, "text": "b.txt"}},
        {"request": REQUEST, "seed": 1},
        {"request": None},
    ],
)
def test_a_partial_profile_of_another_request_is_not_gone_on_from(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    interrupted(path, 2, request=REQUEST)
    found, begun, counted = resumed(path, **options)
    assert begun == [] and counted[0] == EACH
    assert_same(found, profile(MODEL, BATCHES))
    assert CollaborationProfile.load(path).num_tokens == 4 * EACH


def test_a_finished_profile_and_what_is_no_profile_are_written_over(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    path.write_text("something else")
    for _ in range(2):
        found, begun, counted = resumed(path, request=REQUEST)
        assert begun == [] and len(counted) == 4
        assert_same(CollaborationProfile.load(path), found)


def test_a_profile_is_saved_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.safetensors"
    seen: list[tuple[int, bool]] = []

    def look(_: int) -> None:
        saved = CollaborationProfile.load(path)
        seen.append((saved.num_tokens, saved.provenance["complete"]))

    monkeypatch.setattr(profiling, "_SECONDS_BETWEEN_SAVES", -1.0)
    profile(MODEL, BATCHES, out=path, on_batch=look)
    assert seen == [(number * EACH, False) for number in range(1, 5)]
    assert CollaborationProfile.load(path).provenance["complete"]


def test_nothing_is_written_of_no_batches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no batches to profile"):
        profile(MODEL, [], out=tmp_path / "p.safetensors", request=REQUEST)
    assert list(tmp_path.iterdir()) == []
