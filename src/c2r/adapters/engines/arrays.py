"""Numpy files, read block by block: a file larger than memory is no harder than a small one."""

import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from c2r.adapters.engines.engine import WHOLE, Part, TraceFormat
from c2r.adapters.engines.records import BadRecords, Record
from c2r.adapters.formats import ImportFormat
from c2r.errors import InputError, one_line

_BLOCK_BYTES, _BLOCK_ROWS = 16 << 20, 65_536
_MOST_ROW_BYTES = 1 << 24  # a token of 4,000 layers with 500 experts each has as many
_MOST_BYTES = 1 << 30  # of arrays that are kept whole: zeros pack to a thousandth
_NUMBER = re.compile(r"\d+")


def read_layer_arrays(path: Path, bad: BadRecords, part: Part = WHOLE) -> Iterator[Record]:
    """The tokens in a part of a .npz of one `[tokens, k]` array for each layer.

    The last number in an array's name is its layer: `layers.3`, `3`, `topk_layer_3`.

    Raises `InputError` if the file cannot be read.
    """
    for name, block in read_array_blocks(path, part):
        numbers = _NUMBER.findall(name)
        if numbers:
            yield Record(f"{path}, {name}", int(numbers[-1]), block)
        else:
            bad.report(f"{path}, {name}", "no number in its name says which layer it is")


def read_array_blocks(path: Path, part: Part = WHOLE) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The arrays of a .npy or .npz file by name, in blocks along their first dimension.

    A row is in the part that holds its first byte, unpacked, the arrays one after the other.

    Raises `InputError` if the file cannot be read or holds Python objects.
    """
    with _reading(path):
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                first, last = part.of(path.stat().st_size)
                at_end = part.stop == part.size
                yield from ((path.stem, block) for block in _blocks(file, first, last, at_end))
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            first, last = part.of(sum(entry.file_size for entry in entries))
            begin = 0
            for entry in entries:
                end = begin + entry.file_size
                if first < end and last > begin:
                    with archive.open(entry) as file:
                        name = entry.filename.removesuffix(".npy")
                        blocks = _blocks(file, first - begin, last - begin, last >= end)
                        yield from ((name, block) for block in blocks)
                begin = end


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .npy or .npz file by name, whole; 1 GiB of them at most.

    Raises `InputError` as `read_array_blocks`, and for more.
    """
    blocks: dict[str, list[npt.NDArray[Any]]] = {}
    num_bytes = 0
    with _reading(path):
        for name, block in read_array_blocks(path):
            blocks.setdefault(name, []).append(block)
            num_bytes += block.nbytes
            if num_bytes > _MOST_BYTES:
                raise ValueError(f"its arrays take more than {_MOST_BYTES >> 30} GiB")
        return {name: np.concatenate(parts) for name, parts in blocks.items()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError, ValueError, TypeError, EOFError, OverflowError, RecursionError, RuntimeError,
        TokenError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise InputError(
            f"cannot read {path}: {one_line(error)}; give a .npy or .npz file of integers"
        ) from None


def _blocks(file: IO[bytes], first: int, last: int, at_end: bool) -> Iterator[npt.NDArray[Any]]:
    """The rows that begin between two bytes of an array's file, or to its end."""
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    if is_fortran or not shape:
        raise ValueError(f"it holds an array of shape {list(shape)} in column order")
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    if not 0 < row_bytes <= _MOST_ROW_BYTES:
        raise ValueError(f"a row of shape {list(shape[1:])} has {row_bytes:,} bytes")
    header = file.tell()
    begin, stop = (
        min(max(-(-(edge - header) // row_bytes), 0), shape[0]) for edge in (first, last)
    )
    stop = shape[0] if at_end else stop
    file.seek(header + begin * row_bytes)
    rows_per_block = max(min(_BLOCK_BYTES // max(row_bytes, 1), _BLOCK_ROWS), 1)
    for start in range(begin, stop, rows_per_block):
        num_rows = min(rows_per_block, stop - start)
        content = file.read(num_rows * row_bytes)
        if len(content) < num_rows * row_bytes:
            raise ValueError(f"it ends within row {start + len(content) // max(row_bytes, 1)}")
        yield np.frombuffer(content, dtype).reshape(num_rows, *shape[1:])


TRACE_FORMAT = TraceFormat(name=ImportFormat.NPZ, pattern="*.npz", read=read_layer_arrays)
