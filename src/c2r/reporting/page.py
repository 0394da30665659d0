"""One HTML file that shows a report: nothing is fetched, everything is inside.

plotly.js draws the figures. Names come from models and files of others: they are escaped wherever
they are put, in HTML, in the embedded JSON and in the labels of plotly, which knows some HTML too.
"""

import html
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from c2r.artifacts import write_text
from c2r.errors import InputError
from c2r.reporting.charts import Answer, Chart, HeatMap, Matrix, Report, Section, Series, Table

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_RING = {"symbol": "circle-open", "size": 20, "line": {"width": 3}}
_MOST_MARKERS = 40  # on a line
_LONGEST_TICK = 9  # letters of a name along an axis of a heat map


def write_page(report: Report, path: Path) -> None:
    """Writes the page atomically.

    Raises:
        InputError: plotly is not installed, or the file cannot be written.
    """
    write_text(path, render_page(report))


def render_page(report: Report) -> str:
    """The page as text. Raises `InputError` where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise InputError(
            "the report needs plotly; install it with `pip install 'c2r-moe[report]'`"
        ) from None
    charts = ",".join(
        f"{_script_json(json.dumps(chart.slug))}:{_render_data(chart)}" for chart in report.charts
    )
    return Template(_asset("page.html")).substitute(
        title=html.escape(report.title),
        summary=html.escape(report.summary),
        style=_asset("page.css"),
        plotly=get_plotlyjs(),
        script=_asset("page.js"),
        links="".join(_render_link(section) for section in report.sections),
        answers="".join(_render_answer(answer) for answer in report.answers),
        sections="".join(_render_section(section) for section in report.sections),
        charts=f"{{{charts}}}",
    )


def _asset(name: str) -> str:
    return (files("c2r.reporting") / "web" / name).read_text(encoding="utf-8")


def _script_json(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _render_link(section: Section) -> str:
    return f'<a href="#{section.slug}">{html.escape(section.title)}</a>'


def _render_answer(answer: Answer) -> str:
    question, number, unit = map(html.escape, (answer.question, answer.number, answer.unit))
    return (
        f'<article class="answer"><h2>{question}</h2><p class="number">{number}</p>'
        f'<p class="unit">{unit}</p><p>{_render_prose(answer.text)}</p></article>'
    )


def _render_prose(text: str) -> str:
    """Escaped text; what stands between backticks is a command."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _render_section(section: Section) -> str:
    table = "" if section.table is None else _render_table(section.slug, section.table, "open")
    charts = "".join(_render_chart(chart) for chart in section.charts)
    return (
        f'<section id="{section.slug}"><h2>{html.escape(section.title)}</h2>'
        f'<p class="text">{_render_prose(section.text)}</p>'
        f'<div class="charts">{charts}</div>{table}</section>'
    )


def _render_chart(chart: Chart | HeatMap) -> str:
    title = html.escape(chart.title)
    if isinstance(chart, Chart):
        slider, table = "", _render_table(chart.slug, chart.to_table())
    else:
        slider, table = _render_slider(chart), _render_empty_table(chart)
    note = f'<p class="note">{_render_prose(chart.note)}</p>' if chart.note else ""
    return (
        f'<figure><h3>{title}</h3>{slider}<div class="plot" id="plot-{chart.slug}" role="img" '
        f'aria-label="{title}; the numbers are in the table below"></div>{note}{table}</figure>'
    )


def _render_slider(chart: HeatMap) -> str:
    if len(chart.matrices) == 1:
        return ""
    return (
        f'<label class="slider">Show <input type="range" min="0" max="{len(chart.matrices) - 1}" '
        f'value="0" data-chart="{chart.slug}"> '
        f"<output>{html.escape(chart.matrices[0].name)}</output></label>"
    )


def _render_table(slug: str, table: Table, attribute: str = "") -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_render_cell, row))}</tr>" for row in table.rows)
    return _render_details(slug, f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>", attribute)


def _render_cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="number" data-value="{value!r}">{value:.6g}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    return f"<td>{'' if value is None else html.escape(str(value))}</td>"


def _render_empty_table(chart: HeatMap) -> str:
    """A table that the page's script fills with the matrix shown, when it is opened."""
    corner = html.escape(f"{chart.y_label} / {chart.x_label}")
    return _render_details(chart.slug, "", f'data-corner="{corner}"')


def _render_details(slug: str, table: str, attribute: str) -> str:
    return (
        f'<details {attribute} data-chart="{slug}"><summary>Table</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of {slug}">'
        f'<table id="table-{slug}">{table}</table></div>'
        f'<button type="button" class="csv" data-chart="{slug}">Download CSV</button></details>'
    )


def _render_data(chart: Chart | HeatMap) -> str:
    """JSON of a chart: one plotly figure for each position of its slider, and their names."""
    if isinstance(chart, Chart):
        figures, names = [_figure_of_chart(chart)], [""]
    else:
        figures = [_figure_of_matrix(chart, matrix) for matrix in chart.matrices]
        names = [matrix.name for matrix in chart.matrices]
    drawn = ",".join(figure.to_json() for figure in figures)
    return _script_json(f'{{"names":{json.dumps(names)},"figures":[{drawn}]}}')


def _figure_of_chart(chart: Chart) -> "go.Figure":
    import plotly.graph_objects as go

    axes = {"x": _label(chart.x_label), "y": _label(chart.y_label)}
    if chart.style == "bars":
        traces = [_bars(series) for series in chart.series]
        layout = {
            "xaxis": {"title": {"text": axes["y"]}, "rangemode": "tozero"},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "height": 140 + 44 * max(len(series.x) for series in chart.series),
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
        y=[_label(str(name)).replace(", ", ",<br>") for name in series.x],
        orientation="h",
        error_x=_error_bars(series),
        hovertemplate="%{y}: %{x:.6~g}<extra></extra>",
    )


def _error_bars(series: Series) -> dict[str, Any] | None:
    if not series.lower:
        return None
    points = list(zip(series.lower, series.y, series.upper, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [upper - (y or 0) for _, y, upper in points],
        "arrayminus": [(y or 0) - lower for lower, y, _ in points],
        "thickness": 1.5,
    }


def _figure_of_matrix(chart: HeatMap, matrix: Matrix) -> "go.Figure":
    import numpy as np
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
    """Text for plotly, which would take tags for markup."""
    return html.escape(text, quote=False)
