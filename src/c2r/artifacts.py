"""Reads and writes the values that are kept in files.

A value is stored as one safetensors file: numpy arrays by name, and one JSON header that says what
kind of value it is and which version of the schema wrote it. Files are written beside their final
place and renamed, so an interrupted write leaves nothing behind. Pickle is never used.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from c2r.errors import ArtifactError, InputError, PlanError, one_line
from c2r.types import Arrays

SCHEMA_VERSION = 1
_MOST_HEADER_BYTES = 100_000_000  # as safetensors itself has it


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """What a file holds: its kind (`"profile"`, `"plan"`), JSON header and arrays by name."""

    kind: str
    header: dict[str, Any]
    arrays: Arrays


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    What a killed program has left there of an earlier try is removed first. Raises `InputError`
    when `path` is a link or no regular file, so that none is replaced, when the folder does not
    exist, is not writable or the disk is full; the temporary file is removed on any error, an
    interrupt included.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(
            f"{path} is a link, folder or device, which a file would take the place of; choose "
            "another"
        )
    with _beside(path, is_folder=False) as temporary:
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror or error}; nothing was left behind"
            ) from None


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which it becomes when the block ends without an error.

    As `atomic_path`; raises `InputError` also when `folder` is there and not empty.
    """
    check_free(folder)
    with _beside(folder, is_folder=True) as temporary:
        try:
            yield temporary
            open_to_others(temporary)
            temporary.replace(folder)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write {folder}: {one_line(error).rstrip('.')}; nothing was left behind"
            ) from error


def check_free(folder: Path) -> None:
    """Raises `InputError` unless `folder` is missing or empty."""
    try:
        is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another") from None
    if not is_free:
        raise InputError(f"{folder} exists and is not an empty folder; choose another")


def open_to_others(folder: Path) -> None:
    """Gives a folder and all in it the modes that the umask asks for, whatever wrote them."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def _beside(path: Path, *, is_folder: bool) -> Iterator[Path]:
    """A temporary file or folder beside `path`, which is gone when the block has ended."""
    try:
        _clear_leftovers(path)
        temporary, handle = _make_locked(path, is_folder=is_folder)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from None
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _make_locked(path: Path, *, is_folder: bool) -> tuple[Path, int]:
    """A new temporary path, and the handle whose lock says that its maker is alive."""
    prefix = f".{path.name}."
    while True:
        if is_folder:
            name = tempfile.mkdtemp(dir=path.parent, prefix=prefix)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
        with suppress(OSError):  # some disks know no locks; nobody clears there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():  # another may have cleared it before it was locked
            return Path(name), handle
        os.close(handle)


def _clear_leftovers(path: Path) -> None:
    """Removes temporary files beside `path` whose makers were killed."""
    made = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}")
    for found in path.parent.iterdir():
        if made.fullmatch(found.name) is None or found.is_symlink():
            continue
        with suppress(OSError):
            handle = os.open(found, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(found)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
        raise ArtifactError(f"{path} is not JSON ({one_line(error)}); give another file") from None


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
        raise _unreadable(path, error) from None
    return decode_artifact(content, kind, source=path)


def read_header(path: str | Path, kind: str) -> dict[str, Any]:
    """The header of the artifact at `path`; its arrays are not read, however large they are.

    Raises `ArtifactError` as `read_artifact`, but not for what is wrong with the arrays.
    """
    header = _read_header(path)
    _check_kind(path, header.pop("kind"), kind)
    return header


def read_kind(path: str | Path) -> str:
    """The kind of value that the artifact at `path` is. Errors as `read_header`."""
    return str(_read_header(path)["kind"])


def _unreadable(path: str | Path, error: OSError) -> ArtifactError:
    if (Path(path) / "config.json").is_file():
        return ArtifactError(
            f"{path} is the folder of a model; give what was made from it, as by `c2r profile "
            f"{path} --text FILE --out profile.safetensors`"
        )
    return ArtifactError(f"cannot read {path}: {error.strerror}; check the path")


def _read_header(path: str | Path) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_HEADER_BYTES:
                raise ValueError(f"a header of {length:,} bytes")
            metadata = json.loads(file.read(length)).get("__metadata__") or {}
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, AttributeError, RecursionError):
        raise _no_file_of_ours(path) from None
    return _parse_header(path, metadata.get("c2r"))


def _no_file_of_ours(source: str | Path) -> ArtifactError:
    return ArtifactError(
        f"{source} is truncated or not a c2r file; write it again with `c2r profile`, `c2r import` "
        "or `c2r plan`"
    )


def _check_kind(source: str | Path, found: str, kind: str | None) -> None:
    if kind is not None and found != kind:
        raise ArtifactError(
            f"{source} holds a {one_line(found)}, not a {kind}; give a {kind} file here"
        )


def read_arrays(path: str | Path, prefix: str) -> Arrays:
    """The arrays of the artifact at `path` whose names begin so; others are not read.

    Raises `ArtifactError` if the file is missing or truncated.
    """
    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        raise ArtifactError(f"{path} is truncated or cannot be read; write it again") from None


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
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        raise _no_file_of_ours(source) from None
    header = _parse_header(source, metadata.get("c2r"))
    found = header.pop("kind")
    _check_kind(source, found, kind)
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
