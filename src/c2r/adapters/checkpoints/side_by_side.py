"""The safetensors files of a model, written by several processes at once.

Where each tensor lies in which file follows from names, types and shapes alone, so that every
process knows it without asking. One creates the files with their headers and full sizes; then each
writes the bytes that it has. What comes out does not depend on the number of processes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from c2r.adapters.checkpoints.shards import INDEX_FILE, SINGLE_FILE, Shard, StoredTensor

_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_METADATA = {"format": "pt"}


class SideBySide:
    """The files of one model folder; to be closed.

    Args:
        folder: where they are or will be.
        tensors: all of the model by their stored names; on the meta device, their shapes suffice.
        max_shard_size: of a file, in bytes or as "5GB"; a larger tensor has a file of its own.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, Tensor], max_shard_size: int | str
    ) -> None:
        pattern = SINGLE_FILE.replace(".", "{suffix}.")
        # A view, as one expert is of a stack, would count with all that it is a view of.
        own = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
        split = split_torch_state_dict_into_shards(
            own, filename_pattern=pattern, max_shard_size=max_shard_size
        )
        self._folder = folder
        self._shards = {
            name: _lay_out(folder / name, {key: tensors[key] for key in keys})
            for name, keys in split.filename_to_tensors.items()
        }
        self._place = {
            tensor.name: (name, shard.data_start + tensor.begin)
            for name, shard in self._shards.items()
            for tensor in shard.tensors
        }
        self._index = None
        if split.is_sharded:
            total = {"total_parameters": sum(t.numel() for t in tensors.values())}
            weight_map = {key: name for key, (name, _) in self._place.items()}
            self._index = {"metadata": {**total, **split.metadata}, "weight_map": weight_map}
        self._files: dict[str, int] = {}

    def create(self) -> None:
        """Makes the files, their tensors zero yet, and the index. One process calls this first."""
        for shard in self._shards.values():
            with shard.path.open("wb") as file:
                file.write(shard.header({}))
                file.truncate(shard.num_bytes)
        if self._index is not None:
            text = json.dumps(self._index, indent=2, sort_keys=True) + "\n"
            (self._folder / INDEX_FILE).write_text(text, encoding="utf-8")

    def write(self, name: str, values: Tensor, first_value: int = 0) -> None:
        """Writes a tensor, or a stretch of it from `first_value` on. Raises `OSError`."""
        file_name, start = self._place[name]
        values = values.detach().cpu().contiguous()
        content = values.flatten().view(torch.uint8).numpy().data
        start += first_value * values.itemsize
        while content:
            written = os.pwrite(self._open(file_name), content, start)
            content, start = content[written:], start + written

    def _open(self, file_name: str) -> int:
        if file_name not in self._files:
            self._files[file_name] = os.open(self._folder / file_name, os.O_WRONLY)
        return self._files[file_name]

    def flush(self) -> None:
        """Waits until what was written is on the disk. Raises `OSError`."""
        for handle in self._files.values():
            os.fsync(handle)

    def close(self) -> None:
        """Closes the files."""
        for handle in self._files.values():
            os.close(handle)
        self._files = {}


def _lay_out(path: Path, tensors: Mapping[str, Tensor]) -> Shard:
    """The file of these tensors: the widest types first, so that all are aligned, then by name."""
    stored, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + tensor.nbytes
        entry: dict[str, Any] = {"dtype": _DTYPES[tensor.dtype], "shape": tuple(tensor.shape)}
        stored.append(StoredTensor(name=name, begin=begin, end=end, **entry))
    shard = Shard(path=path, tensors=tuple(stored), metadata=_METADATA, data_start=0)
    return Shard(
        path=path,
        tensors=shard.tensors,
        metadata=_METADATA,
        data_start=len(shard.header({})),
    )
