"""Rows of instruction data: JSON lines, and the tables that the package `datasets` reads."""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, overload

from c2r.errors import InputError, one_line
from c2r.text.conversations import Record
from c2r.text.files import json_lines, read_texts

_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:\w+)?")

Row = tuple[Record, str]
"""A record, and the words for its place in errors."""


def read_records(path: Path) -> Sequence[Row]:
    """The records of a .jsonl file, of a .parquet or .arrow file, or of a data set.

    A data set is a folder that `datasets.Dataset.save_to_disk` wrote, or a name on the Hugging Face
    hub, `user/name` or `user/name:split`; its split is `train` where none is named. Tables and data
    sets need the package `datasets`.

    Raises:
        InputError: there is no such data, or the package is not installed.
    """
    check_data(path)
    if path.suffix == ".jsonl":
        (text,) = read_texts([path])
        return list(json_lines(text))
    return _Table(_load(path), path.name if path.exists() else str(path))


def check_data(path: Path) -> None:
    """Raises `InputError` unless there is data of a known kind at `path`; does not read it."""
    if path.suffix in (".jsonl", ".txt"):
        if not path.is_file():
            raise InputError(f"cannot read {path}: no such file; check the path")
        return
    if path.suffix not in _TABLES and not path.is_dir() and not _is_name(path):
        raise InputError(
            f"{path} is neither .txt, .jsonl nor {', '.join(_TABLES)}, nor a data set's folder or "
            "name (user/name); name it by what it holds"
        )
    if path.suffix in _TABLES and not path.is_file():
        raise InputError(f"cannot read {path}: no such file; check the path")
    if find_spec("datasets") is None:
        raise InputError(f"{path} is read by the package datasets: `pip install datasets`")


def _is_name(path: Path) -> bool:
    return not path.exists() and _HUB_NAME.fullmatch(str(path)) is not None


def _load(path: Path) -> Any:
    import datasets  # noqa: PLC0415 - an extra that most users have no need of

    datasets.disable_progress_bars()
    try:
        if path.is_dir():
            found = datasets.load_from_disk(str(path))
            return found["train"] if isinstance(found, datasets.DatasetDict) else found
        if _is_name(path):
            name, _, split = str(path).partition(":")
            return datasets.load_dataset(name, split=split or "train")
        files = [str(path)]
        return datasets.load_dataset(_TABLES[path.suffix], data_files=files, split="train")
    except Exception as error:  # noqa: BLE001 - of pyarrow, of the hub, of data sets themselves
        raise InputError(f"cannot read {path}: {one_line(error)}; check its name") from None


class _Table(Sequence[Row]):
    """Rows of a data set, read when they are asked for."""

    def __init__(self, rows: Any, name: str) -> None:
        self._rows = rows
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._rows[index], f"row {index + 1} of {self._name}"

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))
