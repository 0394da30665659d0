"""One HTML file that shows a report: nothing is fetched, everything is inside.

plotly.js draws the figures. Names come from models and files of others: they are escaped wherever
they are put, in HTML, in the embedded JSON and in the labels of plotly, which knows some HTML too.
"""

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from c2r.artifacts import write_text
from c2r.errors import InputError
from c2r.reporting.charts import Answer, Bar, Chart, HeatMap, Report, Section, Table, Verdict
from c2r.reporting.plotly_charts import plot, to_json
from c2r.reporting.times import milliseconds

_ARROW = " \N{RIGHTWARDS ARROW} "
_SIGNS = {"good": "\u2713", "bad": "\u2717", "warning": "!", "plain": ""}


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
    charts = ",".join(f'"{chart.slug}":{_render_data(chart)}' for chart in report.charts)
    return Template(_asset("page.html")).substitute(
        title=html.escape(report.title),
        summary=html.escape(report.summary),
        style=_asset("page.css"),
        plotly=get_plotlyjs(),
        script=_asset("page.js"),
        links="".join(_render_link(section) for section in report.sections),
        verdict=_render_verdict(report.verdict),
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


def _render_verdict(verdict: Verdict) -> str:
    facts = "".join(_render_answer(fact) for fact in verdict.facts)
    return (
        f'<div class="verdict {verdict.state}"><p class="word">{_SIGNS[verdict.state]} '
        f"{html.escape(verdict.word)}</p><h2>{html.escape(verdict.headline)}</h2>"
        f"<p>{_render_prose(verdict.reason)}</p>{_render_bars(verdict.bars)}"
        f'<p class="next">Next: <code>{html.escape(verdict.command)}</code></p></div>'
        f'<div class="answers">{facts}</div>'
    )


def _render_bars(bars: Sequence[Bar]) -> str:
    """A step before and after, one bar each on a common scale, and the numbers of its parts."""
    longest = max((bar.total for bar in bars), default=0.0)
    if not longest:
        return ""
    drawn = "".join(_render_bar(bar, longest) for bar in bars)
    values = {part: [bar.parts[part] for bar in bars] for part in bars[0].parts}
    values["a layer"] = [bar.layer for bar in bars]
    parts = "".join(
        f'<li><i class="part {part}"></i>{part} '
        f"<b>{_ARROW.join(map(milliseconds, each))}</b> ms</li>"
        for part, each in values.items()
    )
    return f'<div class="bars">{drawn}</div><ul class="parts">{parts}</ul>'


def _render_bar(bar: Bar, longest: float) -> str:
    parts = "".join(
        f'<span class="part {part} {_width_class(value / longest)}" style="flex-grow:{value:.6g}">'
        f"{html.escape(part)}</span>"
        for part, value in bar.parts.items()
        if value > 0
    )
    return (
        f'<span>{html.escape(bar.name)}</span><div class="track"><div class="bar" '
        f'style="width:{100 * bar.total / longest:.4g}%">{parts}</div></div>'
        f"<b>{milliseconds(bar.total)} ms</b>"
    )


def _width_class(share: float) -> str:
    """Whether the name of a part has room in it: on wide screens, on all, or on none."""
    return "wide" if share > 0.3 else "medium" if share > 0.12 else "narrow"


def _render_answer(answer: Answer) -> str:
    question, number, unit = map(html.escape, (answer.question, answer.number, answer.unit))
    sign = _SIGNS[answer.state]
    word = f'<p class="word">{sign} {answer.state}</p>' if sign else '<p class="word"></p>'
    return (
        f'<article class="answer {answer.state}">{word}<h3>{question}</h3>'
        f'<p class="number">{number}</p>'
        f'<p class="unit">{unit}</p><p>{_render_prose(answer.text)}</p></article>'
    )


def _render_prose(text: str) -> str:
    """Escaped text; what stands between backticks is a command."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _render_section(section: Section) -> str:
    table = "" if section.table is None else _render_table(section.slug, section.table, "open")
    charts = "".join(_render_chart(chart) for chart in section.charts)
    answer = "" if section.answer is None else _render_lead(section.answer)
    return (
        f'<section id="{section.slug}"><h2>{html.escape(section.title)}</h2>{answer}'
        f'<p class="text">{_render_prose(section.text)}</p>'
        f'<div class="charts">{charts}</div>{table}</section>'
    )


def _render_lead(answer: Answer) -> str:
    number, unit = html.escape(answer.number), html.escape(answer.unit)
    return f'<p class="text"><b>{number}</b> {unit}. {_render_prose(answer.text)}</p>'


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
    names = [matrix.name for matrix in chart.matrices] if isinstance(chart, HeatMap) else [""]
    drawn = ",".join(to_json(figure) for figure in plot(chart))
    return _script_json(f'{{"names":{json.dumps(names)},"figures":[{drawn}]}}')
