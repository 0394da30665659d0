"""Reads and writes the values that are kept in files.

A value is stored as one safetensors file: numpy arrays by name, and one JSON header that says what
kind of value it is and which version of the schema wrote it. Files are written beside their final
place and renamed, so an interrupted write leaves nothing behind. Pickle is never used.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from c2r.errors import ArtifactError, InputError, PlanError, one_line
from c2r.types import Arrays

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """What a file holds: its kind (`"profile"`, `"plan"`), JSON header and arrays by name."""

    kind: str
    header: dict[str, Any]
    arrays: Arrays


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    Raises `InputError` when `path` is a link or no regular file, so that none is replaced, when
    the folder does not exist, is not writable or the disk is full; the
    temporary file is removed on any error, an interrupt included.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(
            f"{path} is a link, folder or device, which a file would take the place of; choose "
            "another"
        )
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; nothing was left behind"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically. Raises `InputError` as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The JSON data in the file at `path`.

    Raises `ArtifactError` if the file is missing or no JSON, or holds a number that is not finite.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}); give another file") from None


def parse_json(content: str | bytes) -> Any:
    """The JSON data of `content`. Raises `ValueError` if it is none, or has NaN or infinity."""
    return json.loads(content, parse_constant=_refuse_constant)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def encode_artifact(artifact: Artifact) -> bytes:
    """The content of the file that holds `artifact`."""
    header = {"kind": artifact.kind, "schema_version": SCHEMA_VERSION, **artifact.header}
    arrays = {name: np.ascontiguousarray(array) for name, array in artifact.arrays.items()}
    return save(arrays, metadata={"c2r": json.dumps(header)})


def write_artifact(path: str | Path, artifact: Artifact) -> None:
    """Writes `artifact` atomically. Raises `InputError` as `atomic_path` does."""
    content = encode_artifact(artifact)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(content)


def read_artifact(path: str | Path, kind: str | None = None) -> Artifact:
    """The artifact in the file at `path`.

    Args:
        path: a file that `write_artifact` wrote.
        kind: the expected kind of value; None accepts any.

    Raises:
        ArtifactError: the file is missing, truncated, not ours, of another kind, or newer than
            this version of c2r can read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; check the path") from None
    return decode_artifact(content, kind, source=path)


def decode_artifact(
    content: bytes, kind: str | None = None, *, source: str | Path = "the data"
) -> Artifact:
    """The artifact that `encode_artifact` encoded; `source` names it in errors.

    Raises `ArtifactError` as `read_artifact` does.
    """
    try:
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{source} is truncated or not a c2r file ({one_line(error)}); write it again with "
            "`c2r profile`, `c2r import` or `c2r plan`"
        ) from None
    header = _parse_header(source, metadata.get("c2r"))
    found = header.pop("kind")
    if kind is not None and found != kind:
        raise ArtifactError(
            f"{source} holds a {one_line(found)}, not a {kind}; give a {kind} file here"
        )
    return Artifact(kind=found, header=header, arrays=arrays)


def _parse_header(path: str | Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise ArtifactError(
            f"{path} is a safetensors file that c2r did not write; give one that `c2r profile`, "
            "`c2r import` or `c2r plan` wrote"
        )
    try:
        header = json.loads(text)
        version = int(header.pop("schema_version"))
        header["kind"] = str(header["kind"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ArtifactError(f"{path} has a damaged c2r header; write it again") from None
    if version < 1:
        raise ArtifactError(f"{path} has a damaged c2r header; write it again")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}, but this c2r reads up to {SCHEMA_VERSION}; "
            "upgrade c2r"
        )
    return dict(header)


@contextmanager
def damaged_file(path: str | Path) -> Iterator[None]:
    """Turns a missing or malformed field in the block into an `ArtifactError` about `path`."""
    try:
        yield
    except (
        KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError,
        PlanError,
    ) as error:  # fmt: skip
        raise ArtifactError(
            f"{path} lacks or damages a field that it must have ({one_line(error)}); write it again"
        ) from None
