"""Charts as plotly draws them, without colours: the page adds the colours of its theme."""

import html
from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from c2r.reporting.charts import Cell, Chart, HeatMap, Matrix, Series

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_RING = {"symbol": "circle-open", "size": 20, "line": {"width": 3}}
_MOST_MARKERS = 40  # on a line
_LONGEST_TICK = 9  # letters of a name along an axis of a heat map


def plot(chart: Chart | HeatMap) -> "list[go.Figure]":
    """One figure, or of a heat map one for each matrix."""
    if isinstance(chart, Chart):
        return [_plot_chart(chart)]
    return [_plot_matrix(chart, matrix) for matrix in chart.matrices]


def _plot_chart(chart: Chart) -> "go.Figure":
    import plotly.graph_objects as go

    axes = {"x": _label(chart.x_label), "y": _label(chart.y_label)}
    if chart.style == "bars":
        traces = [_bars(series) for series in chart.series]
        layout = {
            "xaxis": {"title": {"text": axes["y"]}, "rangemode": "tozero"},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "height": 140 + max(map(_height_of_bars, chart.series)),
        }
    else:
        traces = list(_lines(chart))
        layout = {
            "xaxis": {"title": {"text": axes["x"]}, **_steps(chart)},
            "yaxis": {"title": {"text": axes["y"]}},
            "height": 400,
        }
    return go.Figure(traces, {"template": {}, **layout})


def _steps(chart: Chart) -> dict[str, Any]:
    """Ticks for an axis that counts: whole numbers only."""
    values = [value for series in chart.series for value in series.x]
    if not all(isinstance(value, int) for value in values):
        return {}
    return {"tickformat": ",d", "dtick": 1} if len(set(values)) <= 16 else {"tickformat": ",d"}


def _lines(chart: Chart) -> Iterator[Any]:
    import plotly.graph_objects as go

    looks = zip(chart.series, cycle(_SYMBOLS), cycle(_DASHES), strict=False)
    for series, symbol, dash in looks:
        where = f"{_label(chart.x_label)} %{{x}}" if not series.labels else "%{customdata}, %{x}"
        yield go.Scatter(
            name=_label(series.name),
            x=series.x,
            y=series.y,
            mode="lines+markers" if len(series.x) <= _MOST_MARKERS else "lines",
            marker=_RING if series.is_marked else {"symbol": symbol, "size": 9},
            line={"dash": dash},
            error_y=_error_bars(series),
            customdata=[_label(label) for label in series.labels] or None,
            hovertemplate=f"{where}: %{{y:.6~g}}<extra>%{{fullData.name}}</extra>",
        )


def _bars(series: Series) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        name=_label(series.name),
        x=series.y,
        y=[",<br>".join(_label(line) for line in _name_lines(name)) for name in series.x],
        orientation="h",
        error_x=_error_bars(series),
        hovertemplate="%{y}: %{x:.6~g}<extra></extra>",
    )


def _height_of_bars(series: Series) -> int:
    """Pixels, so that names do not touch."""
    return max(44, 12 + 17 * max(len(_name_lines(name)) for name in series.x)) * len(series.x)


def _name_lines(name: Cell) -> list[str]:
    return str(name).split(", ")


def _error_bars(series: Series) -> dict[str, Any] | None:
    if not series.lower:
        return None
    points = list(zip(series.lower, series.y, series.upper, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [upper - y for _, y, upper in points],
        "arrayminus": [y - lower for lower, y, _ in points],
        "thickness": 1.5,
    }


def _plot_matrix(chart: HeatMap, matrix: Matrix) -> "go.Figure":
    import plotly.graph_objects as go

    values, is_whole = matrix.values, np.issubdtype(matrix.values.dtype, np.integer)
    if is_whole and values.size and values.min() >= 0 and values.max() < 2**32:
        values = values.astype(np.min_scalar_type(values.max()))  # a smaller page
    trace = go.Heatmap(
        z=values,
        x=[_label(name) for name in matrix.column_names],
        y=[_label(name) for name in matrix.row_names],
        zmin=0,
        zmax=chart.ceiling_of(matrix),
        colorscale="Cividis",
        colorbar={"title": {"text": _label(chart.unit), "side": "right"}, "thickness": 12},
        hovertemplate=f"{_label(chart.y_label)} %{{y}}, {_label(chart.x_label)} %{{x}}: "
        f"%{{z:{',d' if is_whole else '.6~g'}}} {_label(chart.unit)}<extra></extra>",
    )
    longest = max(map(len, (*matrix.row_names, *matrix.column_names)))
    axis = {"type": "category", "showticklabels": longest <= _LONGEST_TICK, "automargin": True}
    width = 1.5 if len(matrix.cuts) < 8 else 0.5
    is_square = matrix.row_names == matrix.column_names
    layout = {
        "xaxis": {**axis, "title": {"text": _label(chart.x_label)}},
        "yaxis": {**axis, "title": {"text": _label(chart.y_label)}, "autorange": "reversed"},
        "shapes": [line for cut in matrix.cuts for line in _cut_lines(cut, is_square, width)],
        "height": 440,
    }
    return go.Figure([trace], {"template": {}, **layout})


def _cut_lines(cut: float, is_square: bool, width: float) -> Iterator[dict[str, Any]]:
    look = {"type": "line", "line": {"color": "white", "width": width}}
    place = cut - 0.5
    yield {**look, "x0": place, "x1": place, "yref": "paper", "y0": 0, "y1": 1}
    if is_square:
        yield {**look, "y0": place, "y1": place, "xref": "paper", "x0": 0, "x1": 1}


def _label(text: str) -> str:
    """Text for plotly, which would read tags as markup."""
    return html.escape(text, quote=False)
