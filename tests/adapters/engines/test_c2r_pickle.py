import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from c2r.adapters.engines import import_traces
from c2r.adapters.engines.c2r_pickle import read_c2r_pickle
from c2r.errors import InputError

REFERENCE = Path(__file__).parents[2] / "../shared/data/c2r-reference"


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def counts(diagonal=-1):
    matrix = np.array([[[0, 3, 1], [3, 0, 2], [1, 2, 0]]])
    matrix[:, range(3), range(3)] = diagonal
    return matrix


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("diagonal", [-1, 0])
def test_pairs_become_a_profile(tmp_path, protocol, diagonal):
    profile = read_c2r_pickle(write(tmp_path / "c.pkl", counts(diagonal), protocol), 2)
    (layer,) = profile.layers
    assert layer.coactivation.tolist() == [[0, 3, 1], [3, 0, 2], [1, 2, 0]]
    assert layer.load.tolist() == [4, 5, 3] and layer.num_tokens == 6
    sets, weights = layer.routing_sets()
    assert sets.tolist() == [[0, 1], [0, 2], [1, 2]] and weights.tolist() == [3, 1, 2]


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_nothing_else_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (Bomb(), [counts(), Bomb()], np.array([Bomb()], dtype=object)):
        with pytest.raises(InputError, match=r"refused: it asks for \w+\.system"):
            read_c2r_pickle(write(tmp_path / "bomb.pkl", value), 2)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "does not hold a numpy array of integers"),
        (np.ones((1, 2, 2)), "does not hold a numpy array of integers"),
        (np.ones((2, 2), int), r"shape \[2, 2\]"),
        (np.arange(9).reshape(1, 3, 3), "not symmetric"),
    ],
)
def test_other_values_are_refused(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        read_c2r_pickle(write(tmp_path / "v.pkl", value), 2)


def test_damaged_files_are_refused(tmp_path):
    whole = pickle.dumps(counts())
    for content in (b"", whole[:40], whole[:-20], b"plain text\n"):
        (tmp_path / "d.pkl").write_bytes(content)
        with pytest.raises(InputError):
            read_c2r_pickle(tmp_path / "d.pkl", 2)
    with pytest.raises(InputError, match="No such file"):
        read_c2r_pickle(tmp_path / "none.pkl", 2)
    with pytest.raises(InputError, match="top_k=4 does not fit 3 experts"):
        read_c2r_pickle(write(tmp_path / "c.pkl", counts()), 4)


def _pickled(*parts):
    """A pickle (protocol 4, no frame) of `numpy._core.multiarray._reconstruct` and a state."""
    return b"".join([b"\x80\x04cnumpy._core.multiarray\n_reconstruct\n", *parts])


def test_a_dtype_with_flags_of_its_own_never_reaches_numpy(tmp_path):
    # With numpy's own dtype this one holds an object at the address that its 8 bytes are.
    dtype = b"cnumpy\ndtype\n(X\x02\0\0\0V8K\0K\1tR"
    state = b"(K\3X\1\0\0\0|NNNK\x08K\1K\0tb"
    array = b"cnumpy._core.numeric\n_frombuffer\n(C\x08AAAAAAAA" + dtype + state
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + array + b"K\1\x85X\1\0\0\0CtR(K\0K\1u.")
    with pytest.raises(InputError, match="truncated or not a pickle"):
        read_c2r_pickle(tmp_path / "a.pkl", 2)
    (tmp_path / "b.pkl").write_bytes(b"\x80\x04" + array + b"K\1\x85X\1\0\0\0CtR.")
    with pytest.raises(InputError, match="not of integers"):
        read_c2r_pickle(tmp_path / "b.pkl", 2)


def test_sizes_are_bounded_by_the_file(tmp_path):
    start = b"(cnumpy\nndarray\nK\0\x85C\1btR"
    dtype = b"cnumpy\ndtype\n(X\2\0\0\0i1K\0K\1tR"
    shape = b"(K\1J" + (56_000).to_bytes(4, "little") + b"J" + (56_000).to_bytes(4, "little") + b"t"
    large = _pickled(start, b"(K\1", shape, dtype, b"K\0C\1\0tb.")
    (tmp_path / "large.pkl").write_bytes(large)
    with pytest.raises(InputError, match="1 bytes do not fill its shape"):
        read_c2r_pickle(tmp_path / "large.pkl", 2)
    (tmp_path / "memo.pkl").write_bytes(b"\x80\x04Nr" + (1 << 31).to_bytes(4, "little") + b".")
    with pytest.raises(InputError, match="it numbers 2,147,483,648 objects in 9 bytes"):
        read_c2r_pickle(tmp_path / "memo.pkl", 2)


def test_a_pickle_cannot_change_what_answers_it(tmp_path):
    for state in (b"}X\4\0\0\0callNs", b"N}X\4\0\0\0callNs\x86"):
        (tmp_path / "s.pkl").write_bytes(b"\x80\x04cnumpy\ndtype\n" + state + b"b.")
        with pytest.raises(InputError, match="gives a state to what has none"):
            read_c2r_pickle(tmp_path / "s.pkl", 2)
    test_pairs_become_a_profile(tmp_path, 4, 0)


def test_import_traces_is_the_door_to_pairs_too(tmp_path):
    path = write(tmp_path / "c.pkl", counts())
    read = import_traces("c2r-pickle", [path], top_k=2)
    assert (read.num_bad, read.profile.provenance) == (0, read_c2r_pickle(path, 2).provenance)
    assert np.array_equal(read.profile.layers[0].coactivation, counts(0)[0])
    for paths, top_k in (([path], None), ([path, path], 2)):
        with pytest.raises(InputError, match=f"{len(paths)} files and top_k={top_k} do not do"):
            import_traces("c2r-pickle", paths, top_k=top_k)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the authors' matrices are not here")
@pytest.mark.parametrize("top_t", [1, 2])
def test_the_authors_matrices(top_t):
    profile = read_c2r_pickle(REFERENCE / f"topt_{top_t}_collaboration.pkl", 2)
    assert (profile.num_layers, profile.num_experts) == (32, 8)
    assert all(layer.num_tokens == 204_800 for layer in profile.layers)
