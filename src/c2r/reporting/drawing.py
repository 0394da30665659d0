"""Charts as HTML and SVG that need no script: they are there when the page is.

Lines are drawn in an SVG that is stretched over the plot; all text is HTML beside it, at places in
per cent. So a plot is as wide as the screen allows, and its letters keep their size. The last line
of a chart is the one that it is about: it has the page's accent.
"""

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from c2r.reporting.axes import Axis
from c2r.reporting.charts import MINUS, Chart, HeatMap, Matrix, Series
from c2r.reporting.labels import Named, choose_sides, spread
from c2r.types import Int

_MOST_MARKERS = 40  # on a line
_LINE_HEIGHT = 7.5  # of a name beside a plot, in per cent of the plot's height
_LETTERS = 15  # of such a name in a line
_MANY_PANELS = 32
_ACCENT = (0x00, 0x72, 0xB2)  # of heat maps: dark enough on white, light enough on black


def draw(chart: Chart | HeatMap) -> str:
    """The chart without its title. All text of others is escaped."""
    if isinstance(chart, HeatMap):
        panels = "".join(_panel(chart, matrix) for matrix in chart.matrices)
        look = "many" if len(chart.matrices) > _MANY_PANELS else "few"
        return f'<div class="panels {look}">{panels}</div>'
    return _bars(chart) if chart.style == "bars" else _plot(chart)


def decimals(values: Iterable[float], digits: int = 4) -> int:
    """How many decimals show `digits` of the largest value."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if not largest else min(max(digits - 1 - math.floor(math.log10(largest)), 0), 8)


def number(value: float, digits: int = 3) -> str:
    """A number for people: thousands parted, a true minus."""
    if math.isfinite(value) and abs(value) >= 10**digits:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)


def _plot(chart: Chart) -> str:
    x, y = _axes(chart)
    lines = [series for series in chart.series if series.look == "line"]
    apart = [series for series in chart.series if series.look != "line"]
    drawn = [f'<path class="grid" d="M0 {_top(y, tick):.4g}H100"/>' for tick in y.ticks()]
    drawn += [_path(chart, series, series is lines[-1], x, y) for series in lines]
    drawn += [_intervals(series, x, y) for series in apart if series.lower]
    text = [
        f'<span class="tick y" style="top:{_top(y, tick):.4g}%">{number(tick)}</span>'
        for tick in y.ticks()
    ]
    text += [
        f'<span class="tick x" style="left:{x.place(tick):.4g}%">{number(tick)}</span>'
        for tick in x.ticks()
    ]
    is_named = len(lines) > 1 and not apart
    text += _names_of_lines(lines, y) if is_named else _names_of_points(apart, x, y)
    points = "".join(_points(series, x, y) for series in chart.series if _has_points(series))
    label = html.escape(f"{chart.title}; the numbers are in the table below")
    return (
        f'<div class="plot{" named" if is_named else ""}" role="img" aria-label="{label}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(drawn)}</svg>'
        f"{points}{''.join(text)}</div>"
        f'<p class="axis{" named" if is_named else ""}">{html.escape(chart.x_label)}</p>'
    )


def _axes(chart: Chart) -> tuple[Axis, Axis]:
    xs = [float(value) for series in chart.series for value in series.x if value is not None]
    is_whole = all(isinstance(value, int) for series in chart.series for value in series.x)
    if chart.style == "columns":
        xs = [min(xs) - 0.5, max(xs) + 0.5]
    ys = [y for each in chart.series for y in (*each.y, *each.lower, *each.upper)]
    return (
        Axis.over(xs, is_whole=is_whole),
        Axis.over(ys, linear_to=chart.linear_to, is_amount=True),
    )


def _top(axis: Axis, value: float) -> float:
    return 100 - axis.place(value)


def _path(chart: Chart, series: Series, is_main: bool, x: Axis, y: Axis) -> str:
    """A line with gaps where a value is not finite; of columns their upper edge."""
    steps, is_open = [], False
    for place, value in zip(series.x, series.y, strict=True):
        if place is None or not math.isfinite(value):
            is_open = False
            continue
        top = _top(y, value)
        if chart.style == "columns":
            left, right = x.place(float(place) - 0.5), x.place(float(place) + 0.5)
            begin = f"V{top:.4g}" if is_open else f"M{left:.4g} {top:.4g}"
            steps.append(f"{begin}H{right:.4g}")
        else:
            steps.append(f"{'L' if is_open else 'M'}{x.place(float(place)):.4g} {top:.4g}")
        is_open = True
    look = "main" if is_main else f"other-{chart.series.index(series) % 2}"
    return f'<path class="line {look}" d="{"".join(steps)}"/>'


def _intervals(series: Series, x: Axis, y: Axis) -> str:
    bounds = zip(series.x, series.lower, series.upper, strict=True)
    steps = [
        f"M{x.place(float(place)):.4g} {_top(y, low):.4g}V{_top(y, high):.4g}"
        for place, low, high in bounds
        if place is not None
    ]
    return f'<path class="interval" d="{"".join(steps)}"/>'


def _has_points(series: Series) -> bool:
    return series.look != "line" or len(series.x) <= _MOST_MARKERS


def _points(series: Series, x: Axis, y: Axis) -> str:
    return "".join(
        f'<i class="point {series.look}" style="left:{x.place(place):.4g}%;'
        f'top:{_top(y, value):.4g}%" title="{html.escape(name)}: {number(value, 4)}"></i>'
        for place, value, name in _finite(series)
    )


def _finite(series: Series) -> Iterator[tuple[float, float, str]]:
    """Places, values and names of the points that can be drawn."""
    names = series.labels or (series.name,) * len(series.x)
    for place, value, name in zip(series.x, series.y, names, strict=True):
        if place is not None and math.isfinite(value):
            yield float(place), value, name


def _names_of_points(apart: Sequence[Series], x: Axis, y: Axis) -> list[str]:
    """The ringed points first, and of points in one place only the first."""
    order = sorted(apart, key=lambda series: series.look != "rings")
    named: dict[tuple[float, float], tuple[str, str]] = {}
    for series in order:
        for place, value, label in _finite(series):
            text = series.name if series.look == "rings" else label
            named.setdefault((x.place(place), _top(y, value)), (text, series.look))
    points = [Named(x=left, y=top, text=text) for (left, top), (text, _) in named.items()]
    looks = (look for _, look in named.values())
    return [
        f'<span class="name {side} {look}" style="left:{point.x:.4g}%;top:{point.y:.4g}%">'
        f"{html.escape(point.text)}</span>"
        for point, look, side in zip(points, looks, choose_sides(points), strict=True)
        if side is not None
    ]


def _names_of_lines(lines: Sequence[Series], y: Axis) -> list[str]:
    """Beside the end of each line."""
    ends = [[value for value in series.y if math.isfinite(value)] for series in lines]
    heights = [_top(y, end[-1]) if end else 50.0 for end in ends]
    tallest = max(-(-len(series.name) // _LETTERS) for series in lines)
    return [
        f'<span class="end{" main" if series is lines[-1] else ""}" style="top:{top:.4g}%">'
        f"{html.escape(series.name)}</span>"
        for series, top in zip(lines, spread(heights, tallest * _LINE_HEIGHT), strict=True)
    ]


def _bars(chart: Chart) -> str:
    """A row for each value: its name, the number, and a bar from 0 with its interval."""
    (series,) = chart.series
    values = [value for value in (*series.y, *series.lower, *series.upper) if math.isfinite(value)]
    low, high = min(0.0, *values), max(0.0, *values)
    axis = Axis(low=low, high=high if high > low else low + 1.0)
    bounds = zip(series.lower, series.upper, strict=True) if series.lower else None
    rows = []
    for name, value in zip(series.x, series.y, strict=True):
        ends = next(bounds) if bounds is not None else None
        said = "" if ends is None else f" <small>({number(ends[0])} to {number(ends[1])})</small>"
        rows.append(
            f"<span>{html.escape(str(name))}</span><b>{number(value)}{said}</b>"
            f"{_track(axis, value, ends)}"
        )
    return f'<div class="rows">{"".join(rows)}</div>'


def _track(axis: Axis, value: float, ends: tuple[float, float] | None) -> str:
    zero = axis.place(0.0)
    line = "" if ends is None else f'<i class="reach" style="{_from_to(axis, *ends)}"></i>'
    return (
        f'<div class="track"><i class="bar" style="{_from_to(axis, 0.0, value)}"></i>{line}'
        f'<i class="zero" style="left:{zero:.4g}%"></i></div>'
    )


def _from_to(axis: Axis, one: float, other: float) -> str:
    left, right = sorted((axis.place(one), axis.place(other)))
    return f"left:{left:.4g}%;width:{right - left:.4g}%"


def _panel(chart: HeatMap, matrix: Matrix) -> str:
    levels = np.nan_to_num(255 * np.clip(matrix.values / chart.ceiling_of(matrix), 0, 1))
    image = base64.b64encode(_png(np.rint(levels).astype(np.uint8))).decode("ascii")
    name = html.escape(matrix.name)
    look = "square" if matrix.row_names == matrix.column_names else "wide"
    return (
        f'<figure class="panel {look}"><div><img alt="{html.escape(chart.title)}, {name}" '
        f'src="data:image/png;base64,{image}">{_cuts(matrix)}</div>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _cuts(matrix: Matrix) -> str:
    """Lines between ranks, where they leave enough to see."""
    size = len(matrix.column_names)
    if not 0 < 4 * len(matrix.cuts) <= size:
        return ""
    places = [100 * cut / size for cut in matrix.cuts]
    lines = "".join(f"M{place:.4g} 0V100M0 {place:.4g}H100" for place in places)
    return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none"><path d="{lines}"/></svg>'


def _png(levels: Int) -> bytes:
    """A picture of one colour, as opaque as the levels say: `[rows, columns]`, 0 to 255."""
    height, width = levels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in levels.astype(np.uint8))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(_ACCENT) * 256),
        (b"tRNS", bytes(range(256))),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
