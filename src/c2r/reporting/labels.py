"""Where the names of points stand, so that none covers another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Side = Literal["right", "left", "above", "below", "corner"]

_WIDTH, _HEIGHT = 420, 260  # pixels of a plot on a small screen
_LETTER, _LINE, _GAP = 7.0, 16.0, 9.0  # pixels
_SIDES: tuple[Side, ...] = ("right", "left", "above", "below", "corner")


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A point with a name: `x` and `y` from 0 to 100, `y` from the top."""

    x: float
    y: float
    text: str


def choose_sides(points: Sequence[Named]) -> list[Side | None]:
    """The side of each point on which its name covers nothing; None where there is none.

    Earlier points choose first.
    """
    taken = [_box(point, None) for point in points]
    sides: list[Side | None] = []
    for point in points:
        free = (side for side in _SIDES if _is_free(_box(point, side), taken))
        side = next(free, None)
        sides.append(side)
        if side is not None:
            taken.append(_box(point, side))
    return sides


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved apart by `gap`, in their order; moved up where they would end beyond 100."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = list(heights)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    limit = 100.0
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


_Box = tuple[float, float, float, float]


def _box(point: Named, side: Side | None) -> _Box:
    """Left, top, right and bottom of a name, or of the point itself, in pixels."""
    x, y = point.x * _WIDTH / 100, point.y * _HEIGHT / 100
    wide = _LETTER * len(point.text)
    if side is None:
        return x - 5, y - 5, x + 5, y + 5
    if side in ("right", "left"):
        left = x + _GAP if side == "right" else x - _GAP - wide
        return left, y - _LINE / 2, left + wide, y + _LINE / 2
    top = y - _GAP - _LINE if side != "below" else y + _GAP
    left = x - wide if side == "corner" else x - wide / 2
    return left, top, left + wide, top + _LINE


def _is_free(box: _Box, taken: Sequence[_Box]) -> bool:
    left, top, right, bottom = box
    if left < 0 or right > _WIDTH or top < -_LINE or bottom > _HEIGHT + _LINE / 2:
        return False
    return all(
        right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3]
        for other in taken
    )
