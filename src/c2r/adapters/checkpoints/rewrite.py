"""Copies a checkpoint, its experts renumbered or not, shard by shard, through one small buffer.

Experts with names of their own are renamed in the header of their shard; stacks are copied piece
by piece in the new order. Nothing is decoded, so any type, quantised ones included, passes through.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from c2r.adapters.checkpoints.layout import Dependence, MoeLayer
from c2r.adapters.checkpoints.order import ExpertOrder
from c2r.adapters.checkpoints.shards import INDEX_FILE, Checkpoint, Shard, StoredTensor
from c2r.artifacts import check_free, write_text
from c2r.errors import InputError
from c2r.plans import Plan
from c2r.plans.model_folder import OWN_ENTRIES
from c2r.types import Int

_STATE_FILE = "c2r_unfinished.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_OWN_FILES = (*OWN_ENTRIES, INDEX_FILE, "config.json")
_BUFFER_BYTES = 1 << 20
"""Stays in the processor's cache between read and write: 8 MiB were slower (docs/log.md)."""

Advance = Callable[[int], None]
Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TensorChanges:
    """How single tensors change, by name; all others are copied.

    Attributes:
        names: their new names.
        pieces: of tensors that are equal pieces of bytes: the old piece of each new one.
        ids: of tables of expert ids: the new id of each old one.
    """

    names: Mapping[str, str]
    pieces: Mapping[str, Int]
    ids: Mapping[str, Int]


def tensor_changes(layers: Sequence[MoeLayer], orders: Sequence[ExpertOrder]) -> TensorChanges:
    """What the orders of MoE layers mean for their tensors."""
    names: dict[str, str] = {}
    pieces: dict[str, Int] = {}
    ids: dict[str, Int] = {}
    for layer, order in zip(layers, orders, strict=True):
        new_expert = order.inverse.experts
        new_ids = new_expert.tolist()
        for name, dependence in layer.tensors.items():
            match dependence:
                case Dependence.NAME:
                    names[name] = layer.rename(name, new_ids)
                case Dependence.ROUTER:
                    pieces[name] = order.experts
                case Dependence.STACK:
                    pieces[name] = order.experts[: layer.num_stored]
                case Dependence.VALUES:
                    ids[name] = new_expert
    return TensorChanges(names=names, pieces=pieces, ids=ids)


UNCHANGED = TensorChanges(names={}, pieces={}, ids={})


@contextmanager
def rewritten_folder(
    checkpoint: Checkpoint,
    changes: TensorChanges,
    folder: Path,
    task: bytes,
    advance: Advance | None = None,
) -> Iterator[Path]:
    """Writes the changed checkpoint; the block adds config.json and other files.

    The work is done in `<folder>.partial/model`, which is renamed to `folder` when the block ends
    without an error. Shards that an interrupted call with the same `task` has finished are kept.

    Raises:
        InputError: the folder is not empty or cannot be written, the disk has no room, or the
            partial folder is of other work.
    """
    work = folder.with_name(f"{folder.name}.partial")
    state = _state(checkpoint, task)
    _clear_finished(work, state)
    check_free(folder)
    partial = work / "model"
    try:
        _open_work(work, state)
        partial.mkdir(exist_ok=True)
        _check_room(checkpoint, partial)
        for shard in checkpoint.shards:
            _write_shard(shard, partial / shard.path.name, changes)
            if advance is not None:
                advance(shard.num_bytes)
        _copy_companions(checkpoint, partial)
        _write_index(checkpoint, partial, changes)
        yield partial
        partial.replace(folder)
        shutil.rmtree(work)
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror or error}; the same call resumes from "
            f"{work.name}"
        ) from error


def write_config(folder: Path, config: Mapping[str, Any], plan: Plan | None) -> None:
    """Writes a config.json that names the plan; without one it names none."""
    config = dict(config)
    if plan is None:
        config.pop("c2r", None)
    else:
        config["c2r"] = {"plan_fingerprint": plan.fingerprint}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def other_weights(checkpoint: Checkpoint) -> list[Path]:
    """Files and folders beside the shards that hold weights too, which are not copied."""
    shards = {shard.path.name for shard in checkpoint.shards} | set(_OWN_FILES)
    return [
        path
        for path in sorted(checkpoint.folder.iterdir())
        if path.name not in shards and _holds_weights(path)
    ]


def _holds_weights(path: Path) -> bool:
    files = path.rglob("*") if path.is_dir() else [path]
    return any(file.name.endswith((*_WEIGHTS, ".index.json")) for file in files)


def _state(checkpoint: Checkpoint, task: bytes) -> str:
    """What identifies this work: what is done, and the files that it is made from."""
    # Times, not contents: reading a checkpoint to know it again would take as long as copying it.
    files = [
        (shard.path.name, shard.num_bytes, shard.path.stat().st_mtime_ns)
        for shard in checkpoint.shards
    ]
    digest = hashlib.sha256(task + json.dumps(files).encode()).hexdigest()
    return json.dumps({"unfinished": "run the same command again", "work": digest[:16]})


def _clear_finished(work: Path, state: str) -> None:
    """Removes what a call of the same work left that was killed after its rename."""
    if _is_of(work, state) and not (work / "model").exists():
        shutil.rmtree(work)


def _open_work(work: Path, state: str) -> None:
    work.mkdir(exist_ok=True)
    if all(path.name.startswith(".") for path in work.iterdir()):  # new, or killed at once
        write_text(work / _STATE_FILE, state)
    elif not _is_of(work, state):
        raise InputError(
            f"{work} is left from another plan or checkpoint; remove it, or choose another folder"
        )


def _is_of(work: Path, state: str) -> bool:
    path = work / _STATE_FILE
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace") == state


def _check_room(checkpoint: Checkpoint, partial: Path) -> None:
    done = sum(
        shard.num_bytes for shard in checkpoint.shards if (partial / shard.path.name).exists()
    )
    needed, free = checkpoint.num_bytes - done, shutil.disk_usage(partial).free
    place = partial.parent.parent
    if needed > free:
        raise InputError(
            f"the checkpoint needs {needed:,} bytes, but {place} has {free:,} free; "
            "choose another disk"
        )


def _write_shard(shard: Shard, target: Path, changes: TensorChanges) -> None:
    """Writes one shard beside its place and renames it when it is on the disk."""
    if target.exists():
        return
    unfinished = target.with_name(f"{target.name}.unfinished")
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with shard.path.open("rb", buffering=0) as source, unfinished.open("wb") as out:
        out.write(shard.header(changes.names))
        for piece in _merge_ranges(_pieces(shard, source, changes)):
            if isinstance(piece, bytes):
                out.write(piece)
            else:
                _copy_range(source, out, piece, buffer)
        out.flush()
        os.fsync(out.fileno())
    unfinished.replace(target)


def _pieces(shard: Shard, source: BinaryIO, changes: TensorChanges) -> Iterator[Range | bytes]:
    """The new shard's tensors in order: byte ranges of the old shard, or new bytes."""
    for tensor in sorted(shard.tensors, key=lambda tensor: tensor.begin):
        start, end = shard.data_start + tensor.begin, shard.data_start + tensor.end
        if tensor.name in changes.pieces:
            order = changes.pieces[tensor.name]
            size = (end - start) // len(order)
            for old in order.tolist():
                yield start + old * size, start + (old + 1) * size
        elif tensor.name in changes.ids:
            source.seek(start)
            yield _renumber_ids(source.read(end - start), tensor, changes.ids[tensor.name])
        else:
            yield start, end


def _renumber_ids(content: bytes, tensor: StoredTensor, new_expert: Int) -> bytes:
    dtype = np.dtype("<i4" if tensor.dtype == "I32" else "<i8")
    ids = np.frombuffer(content, dtype)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(new_expert):
        raise InputError(
            f"{tensor.name} holds ids from {ids.min()} to {ids.max()}; expected 0 to "
            f"{len(new_expert) - 1}"
        )
    return new_expert.astype(dtype)[ids].tobytes()


def _merge_ranges(pieces: Iterator[Range | bytes]) -> Iterator[Range | bytes]:
    """The same pieces with ranges joined that follow one another: fewer, longer reads."""
    start = end = 0
    for piece in pieces:
        # The first range joins the empty one at 0 or is yielded after it, which copies nothing.
        if not isinstance(piece, bytes) and piece[0] == end:
            end = piece[1]
            continue
        yield start, end
        if isinstance(piece, bytes):
            yield piece
            start = end = 0
        else:
            start, end = piece
    yield start, end


def _copy_range(source: BinaryIO, out: BinaryIO, piece: Range, buffer: memoryview) -> None:
    """Copies bytes of one file to the end of another through `buffer`."""
    start, end = piece
    source.seek(start)
    while start < end:
        count = source.readinto(buffer[: min(end - start, len(buffer))])  # type: ignore[attr-defined]
        if not count:
            raise InputError(f"{source.name} became shorter while it was read; run again")
        out.write(buffer[:count])
        start += count


def _copy_companions(checkpoint: Checkpoint, partial: Path) -> None:
    """Copies the tokenizer and what else is no weight and not ours to write."""
    left = {path.name for path in other_weights(checkpoint)}
    left |= {shard.path.name for shard in checkpoint.shards} | set(_OWN_FILES)
    for path in checkpoint.folder.iterdir():
        if path.name in left or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, partial / path.name, dirs_exist_ok=True)
        else:
            shutil.copy2(path, partial / path.name)


def _write_index(checkpoint: Checkpoint, partial: Path, changes: TensorChanges) -> None:
    if checkpoint.index is None:
        return
    weight_map = {
        changes.names.get(name, name): file for name, file in checkpoint.index["weight_map"].items()
    }
    index = {**checkpoint.index, "weight_map": dict(sorted(weight_map.items()))}
    text = json.dumps(index, indent=2) + "\n"
    (partial / INDEX_FILE).write_text(text, encoding="utf-8")
