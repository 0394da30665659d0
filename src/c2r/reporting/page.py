"""One HTML file that shows a report: nothing is fetched, everything is inside.

Names come from models and files of others: they are escaped wherever they are put.
"""

import html
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from c2r.artifacts import write_text
from c2r.reporting.charts import MINUS, Answer, Bar, Chart, HeatMap, Report, Section, Table, Verdict
from c2r.reporting.drawing import decimals, draw

_LARGE = 1e9
_FEW_VALUES = 12  # are told in a table, not drawn
_SIGNS = {"good": "\u2713", "bad": "\u2717", "warning": "!", "plain": ""}
_PARTS = {
    "dispatch": "Send rows to experts",
    "combine": "Send sums back",
    "compute": "Experts compute",
    "reorder": "Reorder rows",
    "rest": "All else",
}


def write_page(report: Report, path: Path) -> None:
    """Writes the page atomically. Raises `InputError` where the file cannot be written."""
    write_text(path, render_page(report))


def render_page(report: Report) -> str:
    """The page as text."""
    return Template(_asset("page.html")).substitute(
        title=html.escape(report.title),
        summary=html.escape(report.summary),
        style=_asset("page.css"),
        script=_asset("page.js"),
        links="".join(_render_link(section) for section in report.sections),
        verdict=_render_verdict(report.verdict),
        sections="".join(_render_section(section) for section in report.sections),
    )


def _asset(name: str) -> str:
    return (files("c2r.reporting") / "web" / name).read_text(encoding="utf-8")


def _render_link(section: Section) -> str:
    return f'<a href="#{section.slug}">{html.escape(section.title)}</a>'


def _render_verdict(verdict: Verdict) -> str:
    known = [fact for fact in verdict.facts if verdict.bars or fact.unit]
    facts = "".join(map(_render_fact, known))
    word = verdict.word[0].upper() + verdict.word[1:]
    remarks = "".join(f"<li>{_render_prose(remark)}</li>" for remark in verdict.remarks)
    return (
        f'<div class="verdict {verdict.state}"><p class="word">{_render_sign(verdict.state)}'
        f"{html.escape(word)}</p><h2>{_render_prose(verdict.headline)}</h2>"
        f"<p>{_render_prose(verdict.reason)}</p>"
        f"{f'<ul>{remarks}</ul>' if remarks else ''}{_render_steps(verdict.bars)}"
        f'<p class="next"><b>Next:</b> {html.escape(verdict.todo)} '
        f"<code>{_render_words(verdict.command)}</code></p></div>"
        f'<div class="facts">{facts}</div>{_render_basis(verdict.basis)}'
    )


def _render_basis(basis: str) -> str:
    """What the times are of, and what is not said by the names of their parts."""
    if not basis:
        return ""
    return (
        f'<p class="basis note">{_render_prose(basis)} Reorder rows: the busiest rank reads and '
        "writes them in the order in which they are sent, computed and summed. Change: of each "
        "row.</p>"
    )


def _render_words(command: str) -> str:
    """A command that breaks between its words only, not at the dashes of an option."""
    return " ".join(f"<span>{html.escape(word)}</span>" for word in command.split(" "))


def _render_sign(state: str) -> str:
    sign = _SIGNS[state]
    return f'<span class="sign" aria-hidden="true">{sign}</span>' if sign else ""


def _render_steps(bars: Sequence[Bar]) -> str:
    """A step before and after, whole and by its parts, all on one scale."""
    if not bars or not all(bar.total > 0 for bar in bars):
        return ""
    before, after = bars
    longest = max(before.total, after.total)
    rows = {"Whole step": (before.total, after.total)}
    rows |= {_PARTS[part]: (before.parts[part], after.parts[part]) for part in before.parts}
    places = decimals([longest])
    lines = "".join(_render_step(name, *pair, longest, places) for name, pair in rows.items())
    head = "".join(f'<th scope="col">{name}</th>' for name in ("before", "after", "change"))
    return (
        '<table class="steps"><thead><tr><th scope="col">ms of a step</th><td></td>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table>"
    )


def _render_step(name: str, before: float, after: float, longest: float, places: int) -> str:
    drawn = "".join(
        f'<i class="{side}" style="width:{100 * value / longest:.4g}%"></i>'
        for side, value in (("before", before), ("after", after))
    )
    percent = round(100 * (after / before - 1)) if before else 0
    change = f"{percent:+d} %".replace("-", MINUS) if percent else "0 %"
    numbers = (f"{before:,.{places}f}", f"{after:,.{places}f}", change)
    cells = "".join(f'<td class="number">{cell}</td>' for cell in numbers)
    return f'<tr><th scope="row">{name}</th><td class="drawn">{drawn}</td>{cells}</tr>'


def _render_fact(answer: Answer) -> str:
    question, figure, unit = map(_render_prose, (answer.question, answer.number, answer.unit))
    sign = _render_sign(answer.state)
    state = f'<span class="word">{sign}{answer.state}</span>' if sign else ""
    return (
        f'<article class="fact {answer.state}"><h3>{question}</h3>'
        f'<p class="figure">{figure} {state}</p>'
        f'<p class="unit">{unit}</p><p>{_render_prose(answer.text)}</p></article>'
    )


def _render_prose(text: str) -> str:
    """Escaped text; what stands between backticks is a command."""
    kept = html.escape(text).replace(" %", "&nbsp;%")
    return re.sub("`([^`]+)`", r"<code>\1</code>", kept)


def _render_section(section: Section) -> str:
    table = "" if section.table is None else _render_details(section.slug, section.table)
    charts = "".join(_render_chart(chart) for chart in section.charts)
    answer = "" if section.answer is None else _render_lead(section.answer)
    text = f'<p class="text">{_render_prose(section.text)}</p>' if section.text else ""
    return (
        f'<section id="{section.slug}"><h2>{html.escape(section.title)}</h2>{answer}{text}'
        f'<div class="charts">{charts}</div>{table}</section>'
    )


def _render_lead(answer: Answer) -> str:
    figure, unit = _render_prose(answer.number), _render_prose(answer.unit)
    return f'<p class="text"><b>{figure} {unit}.</b> {_render_prose(answer.text)}</p>'


def _render_chart(chart: Chart | HeatMap) -> str:
    """A figure and its table; few values are only told in the table."""
    note = f'<p class="note">{_render_prose(chart.note)}</p>' if chart.note else ""
    unit = chart.unit if isinstance(chart, HeatMap) else chart.y_label
    small = "" if unit.lower() in chart.title.lower() else f" <small>{html.escape(unit)}</small>"
    head = f"<h3>{html.escape(chart.title)}{small}</h3>"
    if isinstance(chart, HeatMap):
        look, body = "whole", f"{note}{draw(chart)}"
    elif chart.num_values <= _FEW_VALUES:
        more = (
            "" if chart.table is None else _render_details(chart.slug, chart.table, "All columns")
        )
        shown = _render_table(f"{chart.slug}-drawn", chart.drawn_table())
        look, body = "few", f"{shown}{note}{more}"
    else:
        look = "part"
        body = f"{draw(chart)}{note}{_render_details(chart.slug, chart.to_table())}"
    return f'<figure class="{look}" id="figure-{chart.slug}">{head}{body}</figure>'


def _render_details(slug: str, table: Table, name: str = "Table") -> str:
    return (
        f"<details><summary>{name}</summary>{_render_table(slug, table)}"
        f'<button type="button" class="csv" data-table="table-{slug}">Download CSV</button>'
        "</details>"
    )


def _render_table(slug: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    columns = zip(*table.rows, strict=True)
    places = [decimals(cell for cell in column if isinstance(cell, float)) for column in columns]
    rows = "".join(f"<tr>{''.join(map(_render_cell, row, places))}</tr>" for row in table.rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of {slug}">'
        f'<table id="table-{slug}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )


def _render_cell(value: object, places: int) -> str:
    if isinstance(value, float):
        shown = f"{value:,.{places}f}" if abs(value) < _LARGE else f"{value:.4g}"
        return f'<td class="number" data-value="{value!r}">{shown}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    return f"<td>{'' if value is None else html.escape(str(value))}</td>"
