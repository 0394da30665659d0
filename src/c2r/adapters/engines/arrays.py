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

from c2r.adapters.engines.engine import TraceFormat
from c2r.adapters.engines.records import BadRecords, Record
from c2r.adapters.formats import ImportFormat
from c2r.errors import InputError, one_line

_BLOCK_BYTES, _BLOCK_ROWS = 16 << 20, 65_536
_MOST_ROW_BYTES = 1 << 24  # a token of 4,000 layers with 500 experts each has as many
_NUMBER = re.compile(r"\d+")


def read_layer_arrays(path: Path, bad: BadRecords) -> Iterator[Record]:
    """The tokens in a .npz of one `[tokens, k]` array for each layer.

    The last number in an array's name is its layer: `layers.3`, `3`, `topk_layer_3`.

    Raises `InputError` if the file cannot be read.
    """
    for name, block in read_array_blocks(path):
        numbers = _NUMBER.findall(name)
        if numbers:
            yield Record(f"{path}, {name}", int(numbers[-1]), block)
        else:
            bad.report(f"{path}, {name}", "no number in its name says which layer it is")


def read_array_blocks(path: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The arrays of a .npy or .npz file by name, in blocks along their first dimension.

    Raises `InputError` if the file cannot be read or holds Python objects.
    """
    with _reading(path):
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                yield from ((path.stem, block) for block in _blocks(file))
            return
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                with archive.open(entry) as file:
                    name = entry.removesuffix(".npy")
                    yield from ((name, block) for block in _blocks(file))


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


def _blocks(file: IO[bytes]) -> Iterator[npt.NDArray[Any]]:
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
    rows_per_block = max(min(_BLOCK_BYTES // max(row_bytes, 1), _BLOCK_ROWS), 1)
    for start in range(0, shape[0], rows_per_block):
        num_rows = min(rows_per_block, shape[0] - start)
        content = file.read(num_rows * row_bytes)
        if len(content) < num_rows * row_bytes:
            raise ValueError(f"it ends within row {start + len(content) // max(row_bytes, 1)}")
        yield np.frombuffer(content, dtype).reshape(num_rows, *shape[1:])


TRACE_FORMAT = TraceFormat(name=ImportFormat.NPZ, pattern="*.npz", read=read_layer_arrays)
