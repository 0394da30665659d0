import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from c2r.artifacts import (
    SCHEMA_VERSION,
    Artifact,
    atomic_path,
    read_artifact,
    read_header,
    write_artifact,
)
from c2r.errors import ArtifactError, InputError

ARTIFACT = Artifact(kind="profile", header={"n": 1}, arrays={"a": np.arange(6).reshape(2, 3)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "value.safetensors"


def test_round_trip(path):
    write_artifact(path, ARTIFACT)
    read = read_artifact(path, "profile")
    assert read.kind == "profile" and read.header == {"n": 1}
    assert np.array_equal(read.arrays["a"], ARTIFACT.arrays["a"])


def test_a_transposed_array_is_stored_as_it_reads(path):
    transposed = Artifact(kind="plan", header={}, arrays={"a": np.arange(6).reshape(2, 3).T})
    write_artifact(path, transposed)
    assert np.array_equal(read_artifact(path).arrays["a"], transposed.arrays["a"])


def test_missing(path):
    with pytest.raises(ArtifactError, match="No such file"):
        read_artifact(path)


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_truncated(path, keep):
    write_artifact(path, ARTIFACT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="truncated or not a c2r file"):
        read_artifact(path)


def test_foreign(path):
    path.write_text("not safetensors at all, but long enough to look at")
    with pytest.raises(ArtifactError, match="not a c2r file"):
        read_artifact(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ArtifactError, match="c2r did not write"):
        read_artifact(path)
    save_file({"a": np.zeros(2)}, path, metadata={"c2r": "[]"})
    with pytest.raises(ArtifactError, match="damaged"):
        read_artifact(path)


def test_another_kind(path):
    write_artifact(path, ARTIFACT)
    with pytest.raises(ArtifactError, match="holds a profile, not a plan"):
        read_artifact(path, "plan")


def test_newer_version(path):
    header = {"kind": "profile", "schema_version": SCHEMA_VERSION + 1}
    save_file({"a": np.zeros(2)}, path, metadata={"c2r": json.dumps(header)})
    with pytest.raises(ArtifactError, match=f"version {SCHEMA_VERSION + 1}.*upgrade c2r"):
        read_artifact(path)


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(path):
    path.write_text("old")
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):
        expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected), atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_told_in_one_line(path):
    with pytest.raises(InputError, match=r"No space left.*nothing was left behind"):  # noqa: SIM117
        with atomic_path(path):
            raise OSError(28, "No space left on device")


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*no/such.*choose a folder"):
        write_artifact(tmp_path / "no" / "such" / "file", ARTIFACT)


def test_files_get_the_usual_permissions(path):
    write_artifact(path, ARTIFACT)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_header_is_read_without_the_arrays(tmp_path):
    path = tmp_path / "a"
    write_artifact(path, Artifact(kind="x", header={"a": 1}, arrays={"b": np.arange(1000)}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4000])  # no array is whole
    assert read_header(path, "x") == {"a": 1}
    for content in (whole[:20], b"", b"\xff" * 50, b"\2\0\0\0\0\0\0\0[]"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            read_header(path, "x")
    path.write_bytes(whole)
    with pytest.raises(ArtifactError, match="holds a x, not a y"):
        read_header(path, "y")
    with pytest.raises(ArtifactError, match="cannot read"):
        read_header(tmp_path / "none", "x")


def test_a_models_folder_is_told_apart_from_a_wrong_path(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for read in (read_header, read_artifact):
        with pytest.raises(ArtifactError, match="is the folder of a model; give"):
            read(tmp_path, "plan")
