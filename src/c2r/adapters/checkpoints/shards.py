"""The safetensors shards of a model folder, as byte ranges: nothing is loaded.

A safetensors file is the length of its header (8 bytes, little endian), the header (JSON: tensors
by name with dtype, shape and byte range), and the tensors' bytes without gaps.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2r.errors import InputError, one_line

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of a shard: `begin` and `end` are bytes after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file: its tensors in the order of the header, and where their bytes start.

    Attributes:
        path: the file.
        tensors: in the order of the header; their bytes leave no gap.
        metadata: the header's own, None where it has none.
        data_start: first byte after the header.
    """

    path: Path
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str] | None
    data_start: int

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.data_start + max((tensor.end for tensor in self.tensors), default=0)

    def header(self, names: Mapping[str, str]) -> bytes:
        """The length and header of this shard with tensors renamed as `names` says."""
        header: dict[str, Any] = {} if self.metadata is None else {_METADATA: self.metadata}
        for tensor in self.tensors:
            header[names.get(tensor.name, tensor.name)] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": (tensor.begin, tensor.end),
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # as safetensors does, so that tensors start aligned
        return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model folder: its shards, and the index where it has one."""

    folder: Path
    shards: tuple[Shard, ...]
    index: Mapping[str, Any] | None

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    @property
    def file_of(self) -> dict[str, Path]:
        """The shard of each tensor, by name."""
        return {tensor.name: shard.path for shard in self.shards for tensor in shard.tensors}

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.num_bytes for shard in self.shards)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the headers of a model folder's shards.

    Raises:
        InputError: there are no safetensors weights, a shard that the index names is missing or
            damaged, or the index and the shards name different tensors.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give a folder of a transformers model")
    check_files_inside(folder)
    if (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX_FILE} has no weight_map; download it again")
        shards = tuple(
            _read_shard(folder / name, named_by=INDEX_FILE)
            for name in sorted(set(map(str, weight_map.values())))
        )
        _check_index(folder, shards, weight_map)
        return Checkpoint(folder=folder, shards=shards, index=index)
    if not (folder / SINGLE_FILE).is_file():
        raise InputError(
            f"{folder} has neither {INDEX_FILE} nor {SINGLE_FILE}; save the model with "
            "save_pretrained, which writes safetensors"
        )
    return Checkpoint(folder=folder, shards=(_read_shard(folder / SINGLE_FILE),), index=None)


def check_files_inside(folder: Path) -> None:
    """Raises `InputError` if a model folder has links or an index that lead out of it.

    Links to the blobs of the Hugging Face cache are its own way of keeping files.
    """
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for path in folder.rglob("*"):
        if path.is_symlink():
            target = path.resolve()
            if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
                raise InputError(f"{path} is a link out of the folder; put the file itself there")
    for path in folder.glob("*.index.json"):
        names = read_json(path).get("weight_map")
        for name in names.values() if isinstance(names, dict) else ():
            _check_inside(path, name)


def _check_inside(index: Path, name: object) -> None:
    if not isinstance(name, str) or Path(name).name != name or name == "..":
        raise InputError(
            f"{index} names the shard {one_line(name)}, which is no file of its folder; download "
            "it again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `InputError` if it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; download it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; download it again")
    return value


def _check_index(folder: Path, shards: tuple[Shard, ...], weight_map: Mapping[str, str]) -> None:
    """Raises `InputError` unless index and shards name the same tensors in the same files."""
    found = {tensor.name: shard.path.name for shard in shards for tensor in shard.tensors}
    wrong = sorted(name for name, shard in weight_map.items() if found.get(name) != shard)
    extra = sorted(found.keys() - weight_map.keys())
    if wrong:
        raise InputError(
            f"{folder / INDEX_FILE} puts {wrong[0]} in {weight_map[wrong[0]]}, which does not hold "
            f"it ({len(wrong)} tensors are misplaced); download the folder again"
        )
    if extra:
        raise InputError(
            f"{folder / found[extra[0]]} holds {extra[0]}, which {INDEX_FILE} does not name "
            f"({len(extra)} such tensors); download the folder again"
        )


def _read_shard(path: Path, named_by: str = "") -> Shard:
    """Reads the header of one file and holds it against the file's size.

    Raises `InputError`, which says that `named_by` names the file, where it is missing.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _MAX_HEADER else None
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(
            f"{named_by} names {path.name}, but {path} does not exist; download the missing shard"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a safetensors file ({one_line(error)}); download it again"
        ) from None
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a safetensors file; download it again")
    metadata = header.pop(_METADATA, None)
    try:
        tensors = tuple(_read_tensor(name, entry) for name, entry in header.items())
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} has a damaged header ({error}); download it again") from None
    # Copied as ranges, bytes that no tensor claims would be lost, and overlaps written twice.
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != end:
            raise InputError(f"{path} has a gap before {tensor.name}; download it again")
        end = tensor.end
    if 8 + length + end != size:
        raise InputError(
            f"{path} has {size:,} bytes where its header promises {8 + length + end:,}; download "
            "it again"
        )
    return Shard(
        path=path,
        tensors=tensors,
        metadata=metadata,
        data_start=8 + length,
    )


def _read_tensor(name: str, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    if begin > end or (math.prod(shape) == 0) != (begin == end):
        raise ValueError(f"{name} has shape {list(shape)} and bytes {begin} to {end}")
    return StoredTensor(
        name=name, dtype=str(entry["dtype"]), shape=shape, begin=int(begin), end=int(end)
    )
