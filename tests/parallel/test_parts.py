"""Batches shared out over ranks, again after ranks were lost, on as many or other ranks."""

import random
from itertools import chain, islice

import numpy as np
import pytest

from c2r.errors import InputError
from c2r.parallel import Part, Share, merge_profiles, share_out, simulate
from c2r.profiling import IdProfileBuilder


def test_shares_hold_every_batch_that_is_left_once():
    done = ((0, 4), (6, 7), (9, 11))
    shares = [Share(rank, 3, done) for rank in range(3)]
    assert [list(share.of(range(16))) for share in shares] == [[4, 8, 13], [5, 11, 14], [7, 12, 15]]
    assert [list(islice(share.numbers(), 3)) for share in shares] == [
        list(share.of(range(16))) for share in shares
    ]
    assert Share.from_json(shares[1].to_json()) == shares[1]


@pytest.mark.parametrize("seed", range(20))
def test_no_batch_is_lost_or_counted_twice_however_often_ranks_are_lost(tmp_path, seed):
    """Each launch has another number of ranks, or the same, and each rank ends somewhere."""
    rng, out, num_batches = random.Random(seed), tmp_path / "out", 40
    files: dict[str, Part] = {}

    def launch(comm, stops):
        parts = {out.with_name(name): part for name, part in files.items()}
        sharing = share_out(out, parts, comm)
        todo = list(sharing.share.of(range(num_batches)))
        had = files[sharing.path.name].num_batches if sharing.path.name in files else 0
        num = len(todo) if stops is None else min(had + stops[comm.rank], len(todo))
        brought = [n for path in sharing.taken for n in files[path.name].numbers]
        return sharing.path.name, Part(sharing.share, num), [*todo[:num], *brought]

    for _ in range(rng.randint(0, 4)):
        size = rng.choice([2, 3, 4, 4])
        stops = [rng.randint(0, 5) for _ in range(size)]
        ends = simulate(size, lambda comm, stops=stops: launch(comm, stops))
        # A rank that was lost early has written nothing; its file of before stays.
        files.update({name: part for name, part, _ in ends if part.num_batches})
    counted = [n for _, _, numbers in simulate(3, lambda comm: launch(comm, None)) for n in numbers]
    assert sorted(counted) == list(range(num_batches))


def test_launched_again_on_as_many_ranks_each_goes_on_with_its_own_part(tmp_path):
    out = tmp_path / "out"
    parts = {out.with_name(f"out.rank{rank}of2"): Part(Share(rank, 2), 3) for rank in range(2)}
    for rank, sharing in enumerate(simulate(2, lambda comm: share_out(out, parts, comm))):
        assert sharing == (Share(rank, 2), out.with_name(f"out.rank{rank}of2"), ())


def test_a_part_on_the_disk_of_another_machine_is_brought_by_a_rank_there(tmp_path):
    """After a restart ranks may be numbered otherwise: none sees its own part."""
    out = tmp_path / "out"
    path = out.with_name("out.rank0of2")

    def share(comm):
        return share_out(out, {path: Part(Share(0, 2), 3)} if comm.rank == 1 else {}, comm)

    first, second = simulate(2, share)
    assert first.taken == () and second.taken == (path,)
    assert first.share == Share(0, 2, ((0, 1), (2, 3), (4, 5)))
    assert first.path != path


def profile_of(ids):
    builder = IdProfileBuilder(8)
    builder.update(0, np.asarray(ids))
    return builder.build({0: "gate"})


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("everywhere", [False, True])
def test_profiles_merge_in_pairs(size, everywhere):
    ids = [[[rank % 8, (rank + 1) % 8]] * (rank + 1) for rank in range(size)]
    whole = profile_of(list(chain.from_iterable(ids))).layers[0]
    merged = simulate(
        size, lambda comm: merge_profiles(profile_of(ids[comm.rank]), comm, everywhere=everywhere)
    )
    assert [found is not None for found in merged] == [everywhere or r == 0 for r in range(size)]
    for found in filter(None, merged):
        assert np.array_equal(found.layers[0].coactivation, whole.coactivation)
        assert np.array_equal(found.layers[0].sets.counts, whole.sets.counts)


def test_a_rank_without_a_profile_merges_nothing():
    first, _, _ = simulate(
        3, lambda comm: merge_profiles(profile_of([[0, 1]]) if comm.rank == 2 else None, comm)
    )
    assert first.num_tokens == 1


def test_profiles_of_different_models_are_told():
    ids = [[[0, 1]], [[0, 1, 2]]]
    with pytest.raises(InputError, match="different models"):
        simulate(2, lambda comm: merge_profiles(profile_of(ids[comm.rank]), comm))
