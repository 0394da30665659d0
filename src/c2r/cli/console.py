"""What all commands share: results on stdout, everything else on stderr."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from c2r.errors import InputError, without_controls

_SHADES, _ASCII_SHADES = " \u2591\u2592\u2593\u2588", " .:*#"
_COLORS = ("", "#31446b", "#666970", "#a69c75", "#fde737")  # of Cividis
_MOST_ROWS = 32  # of a heat map

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")
]


def example(command: str) -> str:
    """The last line of a command's help; the mark in front keeps it in one line."""
    return f"\b\nExample: {command}"


def note(message: str) -> None:
    """A line for the user's eyes, on stderr."""
    print(without_controls(message), file=sys.stderr, flush=True)


def check_output(out: Path | None, *inputs: Path | str | None) -> None:
    """Raises `InputError` if the file to write is one that the command reads.

    Of a folder that is an input, a model's perhaps, no file is written over.
    """
    if out is None:
        return
    target = out.resolve()
    for path in (Path(name) for name in inputs if name is not None):
        source = path.resolve()
        if target == source or (path.is_dir() and out.exists() and source in target.parents):
            raise InputError(f"{out} is an input of this command; give another file to write")


def print_json(document: dict[str, Any]) -> None:
    """The command's one JSON document, on stdout; numbers that JSON cannot hold become null."""
    print(json.dumps(_finite(document), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_text(text: str) -> None:
    """A paragraph on stdout, in lines that fit the terminal."""
    _stdout().print(Text(without_controls(text)))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; floats with three decimals, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows[:1])
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _stdout().print(table)


def print_heat_map(
    title: str, row_names: Sequence[str], values: Sequence[Sequence[float]], unit: str
) -> None:
    """Shades on stdout, blank below a fifth of the largest; neighbours share a cell to fit.

    Args:
        title: what is shown.
        row_names: one for each row.
        values: rows of one length, not negative; a shared cell shows their mean.
        unit: of the values.
    """
    console = _stdout()
    names = [row_names[start] for start, _ in _bins(len(values), _MOST_ROWS)]
    label = max(map(len, names))
    columns = _bins(len(values[0]), max((console.width - label - 1) // 2, 1))
    cells = [
        [_mean(values, rows, part) for part in columns] for rows in _bins(len(values), _MOST_ROWS)
    ]
    top = max(map(max, cells))
    shades = _SHADES if console.encoding.startswith("utf") else _ASCII_SHADES
    console.print(Text(title, "bold"))
    for name, row in zip(names, cells, strict=True):
        line = Text(name.rjust(label) + " ")
        for value in row:
            level = min(int(len(shades) * value / top), len(shades) - 1) if top else 0
            line.append(shades[level] * 2, _COLORS[level])
        console.print(line, soft_wrap=True)
    shared = -(-len(values[0]) // len(columns))
    note = f", {shared} columns in a cell" if shared > 1 else ""
    console.print(f"{shades[0]}{shades[-1] * 2} = {top:,.4g} {unit}{note}", highlight=False)


def _stdout() -> Console:
    """A console as wide as the terminal, or 120 where there is none; takes text as it is."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def _bins(count: int, most: int) -> list[tuple[int, int]]:
    """At most `most` ranges of nearly equal length that cover `range(count)`."""
    number = min(count, most)
    return [(count * i // number, count * (i + 1) // number) for i in range(number)]


def _mean(
    values: Sequence[Sequence[float]], rows: tuple[int, int], columns: tuple[int, int]
) -> float:
    picked = [value for row in values[slice(*rows)] for value in row[slice(*columns)]]
    return sum(picked) / len(picked)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else without_controls(str(value))


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator["Advance"]:
    """A progress bar on stderr, where that is a terminal; calling what it gives advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    disable = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(description, total=total)
        yield Advance(progress, task)


class Advance:
    """Moves a progress bar; `reached` is where `reach` has set it."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self.reached = 0
        self._progress = progress
        self._task = task

    def __call__(self, amount: int = 1, total: int | None = None) -> None:
        """Advances the bar by `amount`, of `total` where that is known only now."""
        self._progress.update(self._task, advance=amount, total=total)

    def reach(self, amount: int, total: int | None = None, description: str | None = None) -> None:
        """Sets the bar to `amount`, whatever it was; total and description where they change."""
        self.reached = amount
        self._progress.update(self._task, completed=amount, total=total, description=description)
