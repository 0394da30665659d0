"""What a report consists of: plain values, drawn on a page and as figures for papers.

The table of a figure is made from the figure's own numbers, so the two cannot differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MINUS = "\N{MINUS SIGN}"
Cell = str | int | float | None
State = Literal["good", "bad", "warning", "plain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one name: `x` are numbers, or names where the axis has categories.

    `lower` and `upper` bound each y where its spread is known; `labels` name the points. `look` is
    how a series of the style "lines" is drawn: joined, apart, or as rings around points of others.
    """

    name: str
    x: tuple[Cell, ...]
    y: tuple[float, ...]
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    look: Literal["line", "points", "rings"] = "line"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Series on common axes; `style` says how they are drawn: bars lie, columns stand,
    or are only their upper edges.

    `table` is given where it tells more than the series do. Where `linear_to` is
    given, y is linear up to it and logarithmic beyond.
    """

    slug: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    style: Literal["lines", "bars", "columns"] = "lines"
    note: str = ""
    table: Table | None = None
    linear_to: float | None = None

    @property
    def num_values(self) -> int:
        """How many numbers are drawn; places that are counted or named are none."""
        return sum(
            len(series.y)
            + len(series.lower)
            + len(series.upper)
            + sum(isinstance(value, float) for value in series.x)
            for series in self.series
        )

    def to_table(self) -> Table:
        """All numbers that are known of what is drawn."""
        return self.drawn_table() if self.table is None else self.table

    def drawn_table(self) -> Table:
        """The series side by side, each with its bounds."""
        x = list(dict.fromkeys(value for series in self.series for value in series.x))
        columns = [column for series in self.series for column in _columns_of(series)]
        return Table(
            columns=(self.x_label, *(name for name, _ in columns)),
            rows=tuple((value, *(known.get(value) for _, known in columns)) for value in x),
        )


def _columns_of(series: Series) -> Iterator[tuple[str, dict[Cell, float]]]:
    yield series.name, dict(zip(series.x, series.y, strict=True))
    if series.lower:
        yield "from", dict(zip(series.x, series.lower, strict=True))
        yield "to", dict(zip(series.x, series.upper, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matrix:
    """One picture of a heat map.

    Attributes:
        name: what stands below it.
        values: `[rows, columns]`.
        row_names: of the rows, top to bottom.
        column_names: of the columns, left to right.
        cuts: columns before which a line is drawn, as between the experts of two ranks.
    """

    name: str
    values: npt.NDArray[Any]
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    cuts: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeatMap:
    """Matrices side by side, each on a scale that ends at its 97th percentile."""

    slug: str
    title: str
    x_label: str
    y_label: str
    unit: str
    matrices: tuple[Matrix, ...]
    note: str = ""

    def ceiling_of(self, matrix: Matrix) -> float:
        """Value of the last colour, positive."""
        return float(np.nanpercentile(matrix.values, 97)) or 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A question, answered: the number, what it counts, and what to know about it.

    `state` is what the number is for the reader: good, bad, to be looked at, or neither.
    """

    question: str
    number: str
    unit: str
    text: str
    state: State = "plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What belongs together on the page; an answer stands before the figures."""

    slug: str
    title: str
    text: str
    charts: tuple[Chart | HeatMap, ...] = ()
    table: Table | None = None
    answer: Answer | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A step of the model.

    Attributes:
        name: what it is a step of.
        parts: milliseconds of a step by what they are spent on, in the order of what happens.
        layer: mean milliseconds of an MoE layer.
    """

    name: str
    parts: Mapping[str, float]
    layer: float

    @property
    def total(self) -> float:
        """Milliseconds of the step."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The first screen: whether the plan pays, and what to do next.

    Attributes:
        state: good, bad, to be looked at, or not known.
        word: the state in one or two words.
        headline: what the plan does to the time of a step.
        reason: what changes, where from, and for which batches.
        remarks: what else to know, a sentence or two each.
        basis: what the times are of, and what a difference of them tells.
        bars: a step before and after; empty where no time is known.
        facts: quality, load and copies.
        todo: what to do next.
        command: the same as a command.
    """

    state: State
    word: str
    headline: str
    reason: str
    remarks: tuple[str, ...]
    basis: str
    bars: tuple[Bar, ...]
    facts: tuple[Answer, ...]
    todo: str
    command: str

    def to_json(self) -> dict[str, Any]:
        """JSON data by the names of the attributes; of the bars milliseconds."""
        document = asdict(self)
        for bar, values in zip(self.bars, document["bars"], strict=True):
            values["total"] = bar.total
        return document


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A whole report."""

    title: str
    summary: str
    verdict: Verdict
    answers: tuple[Answer, ...]
    sections: tuple[Section, ...]

    @property
    def charts(self) -> tuple[Chart | HeatMap, ...]:
        """The charts of all sections."""
        return tuple(chart for section in self.sections for chart in section.charts)


def table_of(documents: Sequence[dict[str, Any]], first: Sequence[str] = ()) -> Table:
    """A table of JSON objects: the keys of `first`, then all others that hold scalars."""
    keys = dict.fromkeys(first)
    for document in documents:
        keys |= dict.fromkeys(key for key, value in document.items() if _is_scalar(value))
    rows = tuple(tuple(_scalar(document.get(key)) for key in keys) for document in documents)
    return Table(columns=tuple(key.replace("_", " ") for key in keys), rows=rows)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _scalar(value: Any) -> Cell:
    if value is None or isinstance(value, str | int | float):
        return value
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
