"""Charts as plotly.js draws them, without colours: the page adds the colours of its theme.

Figures are made as the data that plotly.js takes. plotly's Python classes for them would check them
again in every run, and take longer than all else in a report.
"""

import base64
import html
import json
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.reporting.charts import Cell, Chart, HeatMap, Matrix, Series

Figure = dict[str, Any]
"""What plotly.js takes: `data`, a list of traces, and `layout`."""

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_RING = {"symbol": "circle-open", "size": 20, "line": {"width": 3}}
_MOST_MARKERS = 40  # on a line
_CODES = ("u1", "u2", "u4", "f4", "f8")  # of the types that the page's script reads
_LONGEST_TICK = 9  # letters of a name along an axis of a heat map


def plot(chart: Chart | HeatMap) -> list[Figure]:
    """One figure, or of a heat map one for each matrix."""
    if isinstance(chart, Chart):
        return [_plot_chart(chart)]
    return [_plot_matrix(chart, matrix) for matrix in chart.matrices]


def to_json(figure: Figure) -> str:
    """A figure as JSON, which has no numbers that are not finite: null stands for them."""
    text = json.dumps(figure, default=lambda number: number.item())
    finite = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(finite, separators=(",", ":"))


def _plot_chart(chart: Chart) -> Figure:
    axes = {"x": _label(chart.x_label), "y": _label(chart.y_label)}
    if chart.style == "bars":
        traces = [_bars(series) for series in chart.series]
        layout = {
            "xaxis": {"title": {"text": axes["y"]}, "rangemode": "tozero"},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "height": 140 + max(map(_height_of_bars, chart.series)),
        }
    elif chart.style == "columns":
        traces = [_columns(series) for series in chart.series]
        layout = {
            "xaxis": {"title": {"text": axes["x"]}, **_steps(chart)},
            "yaxis": {"title": {"text": axes["y"]}, "rangemode": "tozero"},
            "height": 280,
        }
    else:
        traces = list(_lines(chart))
        layout = {
            "xaxis": {"title": {"text": axes["x"]}, **_steps(chart)},
            "yaxis": {"title": {"text": axes["y"]}},
            "height": 400,
        }
    return {"data": traces, "layout": layout}


def _steps(chart: Chart) -> dict[str, Any]:
    """Ticks for an axis that counts: whole numbers only."""
    values = [value for series in chart.series for value in series.x]
    if not all(isinstance(value, int) for value in values):
        return {}
    return {"tickformat": ",d", "dtick": 1} if len(set(values)) <= 16 else {"tickformat": ",d"}


def _lines(chart: Chart) -> Iterator[dict[str, Any]]:
    looks = zip(chart.series, cycle(_SYMBOLS), cycle(_DASHES), strict=False)
    for series, symbol, dash in looks:
        where = f"{_label(chart.x_label)} %{{x}}" if not series.labels else "%{customdata}, %{x}"
        yield {
            "type": "scatter",
            "name": _label(series.name),
            "x": series.x,
            "y": series.y,
            "mode": _mode(series),
            "marker": _RING if series.look == "rings" else {"symbol": symbol, "size": 9},
            "line": {"dash": dash},
            "error_y": _error_bars(series),
            "customdata": [_label(label) for label in series.labels],
            "hovertemplate": f"{where}: %{{y:.6~g}}<extra>%{{fullData.name}}</extra>",
        }


def _mode(series: Series) -> str:
    if series.look != "line":
        return "markers"
    return "lines+markers" if len(series.x) <= _MOST_MARKERS else "lines"


def _columns(series: Series) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": _label(series.name),
        "x": series.x,
        "y": series.y,
        "hovertemplate": "%{x}: %{y:.6~g}<extra>%{fullData.name}</extra>",
    }


def _bars(series: Series) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": _label(series.name),
        "x": series.y,
        "y": [",<br>".join(_label(line) for line in _name_lines(name)) for name in series.x],
        "orientation": "h",
        "error_x": _error_bars(series),
        "hovertemplate": "%{y}: %{x:.6~g}<extra></extra>",
    }


def _height_of_bars(series: Series) -> int:
    """Pixels, so that names do not touch."""
    return max(44, 12 + 17 * max(len(_name_lines(name)) for name in series.x)) * len(series.x)


def _name_lines(name: Cell) -> list[str]:
    return str(name).split(", ")


def _error_bars(series: Series) -> dict[str, Any]:
    if not series.lower:
        return {}
    points = list(zip(series.lower, series.y, series.upper, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [upper - y for _, y, upper in points],
        "arrayminus": [y - lower for lower, y, _ in points],
        "thickness": 1.5,
    }


def _plot_matrix(chart: HeatMap, matrix: Matrix) -> Figure:
    is_whole = np.issubdtype(matrix.values.dtype, np.integer)
    trace = {
        "type": "heatmap",
        "z": _encode(matrix.values),
        "x": [_label(name) for name in matrix.column_names],
        "y": [_label(name) for name in matrix.row_names],
        "zmin": 0,
        "zmax": chart.ceiling_of(matrix),
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": _label(chart.unit), "side": "right"}, "thickness": 12},
        "hovertemplate": f"{_label(chart.y_label)} %{{y}}, {_label(chart.x_label)} %{{x}}: "
        f"%{{z:{',d' if is_whole else '.6~g'}}} {_label(chart.unit)}<extra></extra>",
    }
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
    return {"data": [trace], "layout": layout}


def _encode(values: npt.NDArray[Any]) -> Any:
    """A matrix as plotly.js takes it: base64 of the shortest type that holds it, or its rows."""
    if np.issubdtype(values.dtype, np.integer) and values.size and values.min() >= 0:
        values = values.astype(np.min_scalar_type(values.max()))
    code = f"{values.dtype.kind}{values.dtype.itemsize}"
    if code not in _CODES or not values.size:
        return values.tolist()
    little_endian = values.astype(values.dtype.newbyteorder("<"))
    return {
        "dtype": code,
        "bdata": base64.b64encode(little_endian.tobytes()).decode("ascii"),
        "shape": ", ".join(map(str, values.shape)),
    }


def _cut_lines(cut: float, is_square: bool, width: float) -> Iterator[dict[str, Any]]:
    look = {"type": "line", "line": {"color": "white", "width": width}}
    place = cut - 0.5
    yield {**look, "x0": place, "x1": place, "yref": "paper", "y0": 0, "y1": 1}
    if is_square:
        yield {**look, "y0": place, "y1": place, "xref": "paper", "x0": 0, "x1": 1}


def _label(text: str) -> str:
    """Text for plotly, which would read tags as markup."""
    return html.escape(text, quote=False)
