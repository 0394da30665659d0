"""What all commands share: results on stdout, everything else on stderr."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import rich.progress
import typer
from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from c2r.cli.processes import is_first_process
from c2r.errors import without_controls

_SHADES, _ASCII_SHADES = " \u2591\u2592\u2593\u2588", " .:*#"
_COLORS = ("", "#31446b", "#666970", "#a69c75", "#fde737")  # of Cividis
_ENDLESS = 10_000
_WHOLE = 24  # characters of a cell that is never broken
_FEW = 2  # columns that are shown however long their words are
_MOST_ROWS = 32  # of a heat map
_SECONDS_TO_FIRST, _MOST_SECONDS_A_LINE = 10.0, 60.0

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")
]


_is_quiet = False


@contextmanager
def quieted(is_quiet: bool) -> Iterator[None]:
    """Keeps notes and progress of the block from the user, if so asked."""
    global _is_quiet
    before, _is_quiet = _is_quiet, is_quiet
    try:
        yield
    finally:
        _is_quiet = before


def note(message: str) -> None:
    """A line for the user's eyes, on stderr; none with --quiet."""
    if not _is_quiet:
        complain(message)


def complain(message: str) -> None:
    """A warning or an error, on stderr."""
    print(without_controls(message), file=sys.stderr, flush=True)


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
    """A table on stdout; floats with three decimals, numbers to the right.

    It fits the terminal with all its digits: headings are broken where they must, then the lines
    between the columns are left out, then the last columns make a table of their own.
    """
    console = _stdout()
    cells = [[_cell(value) for value in row] for row in rows]
    is_number = [bool(rows) and isinstance(value, int | float) for value in (rows or [columns])[0]]
    shown = [0]  # columns of the next table; the first names the rows
    for column in range(1, len(columns)):
        if _layout(console, title, columns, cells, is_number, [*shown, column]) is None:
            console.print(_layout(console, title, columns, cells, is_number, shown))
            title, shown = f"{title} (more)", [0]
        shown.append(column)
    console.print(_layout(console, title, columns, cells, is_number, shown) or "")


def _layout(
    console: Console,
    title: str,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    shown: Sequence[int],
) -> Table | None:
    """The best table of the columns `shown` that fits; None if none does, but for two columns."""
    table = Table()
    for box, is_tight in ((HEAVY_HEAD, False), (HEAVY_HEAD, True), (SIMPLE_HEAD, True)):
        table = Table(title=title, title_justify="left", title_style="bold", box=box)
        for index in shown:
            lengths = [len(row[index]) for row in cells]
            is_fixed = is_tight and index > 0 and max(lengths, default=0) <= _WHOLE
            words = max(map(len, columns[index].split()))
            table.add_column(
                columns[index],
                justify="right" if is_number[index] else "left",
                overflow="fold",
                width=max(words, *lengths) if is_fixed else None,
            )
        for row in cells:
            table.add_row(*(row[index] for index in shown))
        endless = console.options.update(width=_ENDLESS)  # measures are cut to the width at hand
        measured = table.__rich_measure__(console, endless)
        if (measured.minimum if is_tight else measured.maximum) <= console.width:
            return table
    return table if len(shown) <= _FEW else None


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
def progress_bar(description: str, total: int | None) -> Iterator["Progress"]:
    """Progress on stderr: a bar on a terminal, else a line a minute; none with --quiet.

    Of several ranks the first shows its own. Calling what it gives, or its `reach`, advances it.
    """
    console = Console(stderr=True)
    if _is_quiet or not is_first_process():
        yield Progress()
    elif not console.is_terminal:
        yield ProgressLines(description, total)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            yield _ProgressBar(bar, bar.add_task(description, total=total))


class Progress:
    """How far a command is; `reached` is where `reach` or `resume` has set it. Shows nothing."""

    def __init__(self) -> None:
        self.reached = 0

    def __call__(self, amount: int = 1, total: int | None = None) -> None:
        """Advances by `amount`, of `total` where that is known only now."""
        self.reach(self.reached + amount, total)

    def reach(self, amount: int, total: int | None = None, description: str | None = None) -> None:
        """Sets it to `amount`, whatever it was; total and description where they change."""
        self.reached = amount

    def resume(self, amount: int) -> None:
        """Sets it to `amount`, which was done before and took no time."""
        self.reach(amount)

    def restart(self, total: int, description: str) -> None:
        """Begins anew, at 0 of something else."""
        self.reach(0, total, description)


class _ProgressBar(Progress):
    """On a terminal."""

    def __init__(self, bar: "rich.progress.Progress", task: Any) -> None:
        super().__init__()
        self._bar = bar
        self._task = task

    def reach(self, amount: int, total: int | None = None, description: str | None = None) -> None:
        super().reach(amount)
        self._bar.update(self._task, completed=amount, total=total, description=description)

    def restart(self, total: int, description: str) -> None:
        super().restart(total, description)
        self._bar.reset(self._task)  # of its clock


class ProgressLines(Progress):
    """In a file or a pipe: the first line after 10 seconds, then rarer, to one a minute.

    Args:
        description: what is done, and in what it is counted.
        total: of it; None where it is not known.
        clock: gives seconds.
        tell: takes a line.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = note,
    ) -> None:
        super().__init__()
        self._description, self._total = description, total
        self._clock, self._tell = clock, tell
        self._begin()

    def _begin(self) -> None:
        self._start, self._before = self._clock(), 0
        self._next = self._start + _SECONDS_TO_FIRST

    def reach(self, amount: int, total: int | None = None, description: str | None = None) -> None:
        """Tells how far it is, how fast and how long yet, if it is time for a line."""
        super().reach(amount)
        self._total = self._total if total is None else total
        self._description = self._description if description is None else description
        now = self._clock()
        if now >= self._next:
            self._next = now + min(now - self._start, _MOST_SECONDS_A_LINE)
            self._tell(self._line(now - self._start))

    def resume(self, amount: int) -> None:
        """As `Progress.resume`."""
        self.reached = self._before = amount

    def restart(self, total: int, description: str) -> None:
        """As `Progress.restart`."""
        self._begin()
        super().restart(total, description)

    def _line(self, seconds: float) -> str:
        rate = (self.reached - self._before) / seconds
        line = f"{self._description}: {self.reached:,}"
        if self._total:
            line += f" of {self._total:,} ({100 * self.reached / self._total:.0f} %)"
        line += f", {rate:,.3g} a second" if rate < 100 else f", {rate:,.0f} a second"
        if self._total and rate > 0:
            line += f", {duration(max(self._total - self.reached, 0) / rate)} left"
        return line


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would choose."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
