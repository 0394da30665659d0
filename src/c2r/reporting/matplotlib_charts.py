"""The charts of a report as PNG and SVG, for papers; matplotlib draws them without a browser."""

from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from c2r.artifacts import atomic_path
from c2r.errors import InputError
from c2r.reporting.charts import Chart, HeatMap, Report, Series
from c2r.reporting.inputs import Inputs
from c2r.reporting.sections.quality import TIME, quality_chart
from c2r.reporting.times import find_setting
from c2r.results import SweepResult

_COLORS = ("#0072b2", "#d55e00", "#007a59", "#a3487c", "#8a6100", "#2f7fb0", "#55585c")
_MARKERS = "osD^Px*vX"  # not as many as colours, so that no pair of both comes twice soon
_DASHES = ("-", "--", ":", "-.")
_RING: dict[str, Any] = {"marker": "o", "markersize": 13, "fillstyle": "none"}
_TICKS = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # of an axis that is linear, then logarithmic
_MOST_PANELS = 12  # of a heat map with many matrices, evenly chosen


def check_matplotlib() -> None:
    """Raises `InputError` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib; install it with `pip install 'c2r-moe[plot]'`")


def write_sweep_chart(sweep: SweepResult, path: Path) -> None:
    """Writes loss against time as SVG where `path` ends so, else as PNG.

    Where the sweep does not tell what came to each rank, against copies.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_matplotlib()
    setting = find_setting(Inputs(sources=(), sweep=sweep))
    chart = quality_chart(sweep, setting)
    where = f"{sweep.topology.num_ranks} ranks"
    if setting is not None and chart.x_label == TIME:
        where = f"{where}, {setting.name}"
    chart = replace(chart, title=f"{Path(sweep.request['model']).name} on {where}")
    _write(chart, path)


def write_chart(chart: Chart, path: Path) -> None:
    """Writes one chart as SVG where `path` ends so, else as PNG. Raises as `write_sweep_chart`."""
    check_matplotlib()
    _write(chart, path)


def write_figures(report: Report, folder: Path) -> tuple[Path, ...]:
    """Writes each chart to `folder` as PNG and SVG, and gives the paths.

    Raises:
        InputError: matplotlib is not installed, or a file cannot be written.
    """
    check_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write figures to {folder}: {error.strerror}; choose another folder"
        ) from None
    return tuple(path for chart in report.charts for path in _write_chart(chart, folder))


def _write_chart(chart: Chart | HeatMap, folder: Path) -> list[Path]:
    paths = [folder / f"{chart.slug}.png", folder / f"{chart.slug}.svg"]
    for path in paths:
        _write(chart, path)
    return paths


def _write(chart: Chart | HeatMap, path: Path) -> None:
    from matplotlib import rc_context

    figure = _draw_chart(chart) if isinstance(chart, Chart) else _draw_heat_map(chart)
    kind = "svg" if path.suffix == ".svg" else "png"
    metadata = {"Date": None} if kind == "svg" else {}
    with (
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "c2r"}),
        atomic_path(path) as temporary,
    ):
        figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)


def _draw_chart(chart: Chart) -> Any:
    from matplotlib.figure import Figure

    rows = max(len(series.x) for series in chart.series)
    height = 1.2 + 0.3 * rows if chart.style == "bars" else 4.2
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes: Any = figure.subplots()
    looks = zip(chart.series, cycle(_COLORS), cycle(_MARKERS), cycle(_DASHES), strict=False)
    for index, (series, color, marker, dash) in enumerate(looks):
        if chart.style == "bars":
            _draw_bars(axes, series, color)
        elif chart.style == "columns":
            _draw_columns(axes, series, color, index, len(chart.series))
        else:
            axes.errorbar(
                series.x,
                series.y,
                yerr=_errors(series),
                label=_plain(series.name),
                color=color,
                linestyle=dash if series.look == "line" else "none",
                **(_RING if series.look == "rings" else {"marker": marker, "markersize": 5}),
            )
    if chart.linear_to is not None:
        axes.set_yscale("symlog", linthresh=chart.linear_to)
        shown = [tick for tick in _TICKS if tick <= axes.get_ylim()[1]]
        axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    x_label, y_label = chart.x_label, chart.y_label
    if chart.style == "bars":
        x_label, y_label = chart.y_label, ""
        axes.invert_yaxis()
    axes.set(xlabel=_plain(x_label), ylabel=_plain(y_label), title=_plain(chart.title))
    if all(isinstance(value, int) for series in chart.series for value in series.x):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _draw_bars(axes: Any, series: Series, color: str) -> None:
    names = [_plain(str(name)) for name in series.x]
    axes.barh(
        names, series.y, xerr=_errors(series), color=color, capsize=3, label=_plain(series.name)
    )


def _draw_columns(axes: Any, series: Series, color: str, index: int, count: int) -> None:
    """The columns of one of `count` series, which stand side by side around each x."""
    width = 0.8 / count
    places = np.array(series.x) + width * (index - (count - 1) / 2)
    axes.bar(places, series.y, width=width, color=color, label=_plain(series.name))


def _errors(series: Series) -> list[list[float]] | None:
    if not series.lower:
        return None
    points = list(zip(series.lower, series.y, series.upper, strict=True))
    below = [max(y - lower, 0.0) for lower, y, _ in points]
    above = [max(upper - y, 0.0) for _, y, upper in points]
    return [below, above]


def _draw_heat_map(chart: HeatMap) -> Any:
    from matplotlib.figure import Figure

    count = min(len(chart.matrices), _MOST_PANELS)
    chosen = np.linspace(0, len(chart.matrices) - 1, count).round().astype(int)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(2.6 * columns, 5.0), 2.6 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    image: Any = None
    for axes, index in zip(panels, chosen, strict=False):
        matrix = chart.matrices[index]
        aspect = "equal" if matrix.row_names == matrix.column_names else "auto"
        image = axes.imshow(
            matrix.values, cmap="cividis", vmin=0, vmax=chart.ceiling_of(matrix), aspect=aspect
        )
        for cut in matrix.cuts:
            axes.axvline(cut - 0.5, color="white", linewidth=0.8)
            axes.axhline(cut - 0.5, color="white", linewidth=0.8)
        if count > 1:
            axes.set_title(_plain(matrix.name), fontsize="small")
        axes.set(xlabel=_plain(chart.x_label), ylabel=_plain(chart.y_label), xticks=[], yticks=[])
    for axes in panels[count:]:
        axes.set_axis_off()
    if count == 1:
        figure.colorbar(image, label=_plain(chart.unit))
    figure.suptitle(_plain(chart.title))
    return figure


def _plain(text: str) -> str:
    """Text for matplotlib, which would read dollars as mathematics."""
    return text.replace("$", r"\$")
