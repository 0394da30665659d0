"""Axes of a chart on a page: where a value stands, and which values are named."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROOM = 0.06  # of the axis, beyond the outermost values
_LOG_TICKS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A range of values; linear, or logarithmic beyond `linear_to` on both sides of 0.

    Attributes:
        low: where it begins, on the scale of the axis.
        high: where it ends; greater than `low`.
        linear_to: up to which value it is linear; None for all.
        is_whole: whether it counts, so that only whole numbers are named.
    """

    low: float
    high: float
    linear_to: float | None = None
    is_whole: bool = False

    @classmethod
    def over(
        cls,
        values: Iterable[float],
        *,
        linear_to: float | None = None,
        is_whole: bool = False,
        is_amount: bool = False,
    ) -> "Axis":
        """An axis of all values; one of whole numbers ends at them, another has some room.

        One of amounts begins at 0 where that leaves little empty.
        """
        finite = [_scaled(value, linear_to) for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        room = 0.0 if is_whole and low < high else _ROOM * (high - low) or 0.1 * abs(high) or 1.0
        return cls(
            low=0.0 if is_amount and 0 <= low < high / 2 else low - room,
            high=high + room,
            linear_to=linear_to,
            is_whole=is_whole,
        )

    def place(self, value: float) -> float:
        """Where a value stands: 0 at the beginning, 100 at the end."""
        return 100 * (_scaled(value, self.linear_to) - self.low) / (self.high - self.low)

    def ticks(self, most: int = 8) -> list[float]:
        """Round values within the axis, in order."""
        if self.linear_to is not None:
            named = (*(-tick for tick in _LOG_TICKS[:0:-1]), *_LOG_TICKS)
            return [tick for tick in named if 0 <= self.place(tick) <= 100]
        span = self.high - self.low
        if not 0 < span < math.inf:
            return []
        size = 10.0 ** math.floor(math.log10(span / most))
        step = next(size * times for times in (1, 2, 5, 10) if span / (size * times) <= most)
        step = max(step, 1.0) if self.is_whole else step
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [step * index for index in range(first, last + 1)]


def _scaled(value: float, linear_to: float | None) -> float:
    if linear_to is None:
        return value
    size = abs(value) / linear_to
    return value / linear_to if size <= 1 else math.copysign(1 + math.log10(size), value)
