import base64
import re
import struct
import zlib

import numpy as np
import pytest

from c2r.reporting.charts import Chart, HeatMap, Matrix, Series
from c2r.reporting.drawing import decimals, draw, number

NAMES = {"slug": "s", "title": "t", "x_label": "x", "y_label": "y"}


def chart(*series, **options):
    return Chart(**NAMES, series=series, **options)


def line(name, y, **options):
    return Series(name=name, x=tuple(range(len(y))), y=y, **options)


def paths(drawn, look):
    return re.findall(rf'<path class="line {look}" d="([^"]+)"', drawn)


def test_the_last_line_has_the_accent_and_each_is_named():
    drawn = draw(chart(line("before", (1.0, 2.0, 3.0)), line("after", (1.0, 1.0, 1.5))))
    assert len(paths(drawn, "main")) == len(paths(drawn, "other-0")) == 1
    assert re.findall(r'class="end[^"]*" style="[^"]+">(\w+)<', drawn) == ["before", "after"]
    assert "end" not in draw(chart(line("alone", (1.0, 2.0))))


def test_higher_values_stand_higher():
    (path,) = paths(draw(chart(line("a", (0.0, 1.0)))), "main")
    (_, low), (_, high) = [map(float, part.split()) for part in re.split("[ML]", path)[1:]]
    assert 0 < high < low <= 100


def test_a_line_has_a_gap_where_nothing_is_known():
    (path,) = paths(draw(chart(line("a", (1.0, float("nan"), 2.0, 3.0)))), "main")
    assert path.count("M") == 2 and path.count("L") == 1


def test_columns_are_drawn_by_their_edges():
    (path,) = paths(draw(chart(line("a", (1.0, 3.0, 2.0)), style="columns")), "main")
    assert (path.count("M"), path.count("H"), path.count("V")) == (1, 3, 2)


def test_bars_tell_their_numbers_and_intervals():
    bars = Series(name="b", x=("one", "two"), y=(-3.0, 1.0), lower=(-7.0, 0.5), upper=(1.0, 1.5))
    drawn = draw(chart(bars, style="bars"))
    assert "<b>\N{MINUS SIGN}3 <small>(\N{MINUS SIGN}7 to 1)</small></b>" in drawn
    lefts = [float(left) for left in re.findall(r'class="zero" style="left:([\d.]+)%', drawn)]
    assert lefts == pytest.approx([100 * 7 / 8.5] * 2, rel=1e-3)


def test_a_matrix_is_a_picture_of_its_values():
    values = np.array([[0, 50, 100], [100, 0, 0]])
    matrix = Matrix(name="m", values=values, row_names=("0", "1"), column_names=("0", "1", "2"))
    drawn = draw(HeatMap(**NAMES, unit="tokens", matrices=(matrix,)))
    content = base64.b64decode(re.search(r"base64,([^\"]+)", drawn)[1])
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (3, 2)
    start = content.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", content[start - 8 : start - 4])
    rows = zlib.decompress(content[start : start + length])
    assert rows == bytes([0, 0, 128, 255, 0, 255, 0, 0])


def test_numbers_for_people():
    assert [number(value) for value in (0.12345, 12.0, 1234.5, -2)] == [
        "0.123",
        "12",
        "1,234",
        "\N{MINUS SIGN}2",
    ]
    assert decimals([4.5, 3.0]) == 3 and decimals([12345.0]) == 0 and decimals([]) == 0
