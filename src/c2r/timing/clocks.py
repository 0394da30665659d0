"""Clocks, and the statistics of their times."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class Stopwatch:
    """Adds up seconds by name: each lap is the time since the one before."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def start(self) -> None:
        """The next lap begins now."""
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a lap, which counts for `name`, and begins the next one."""
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The median of repeated figures, and the quartiles around it."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Quartiles interpolate linearly: of 1, 2, 3, 4, 9 they are 2 and 4 around 3."""
        lower, median, upper = np.quantile(figures, [0.25, 0.5, 0.75])
        return cls(median=float(median), lower=float(lower), upper=float(upper))


def spread_of_ratios(seconds: Sequence[float], baseline: Sequence[float]) -> Spread:
    """How `seconds` compare to the `baseline` of the same round, over all rounds.

    What slows a whole round down cancels; what disturbs one side only shows in the quartiles.
    """
    return Spread.of([after / before for after, before in zip(seconds, baseline, strict=True)])


_HEADER_BYTES = 66  # of Ethernet, IPv4, and TCP with time stamps, on every packet


def interface_bytes(interface: str) -> tuple[int, int] | None:
    """Bytes (sent, received) that Linux counted at a network interface; None where it does not.

    Without headers: how many there are depends on the segments that the kernel cuts.
    """
    folder = Path("/sys/class/net", interface, "statistics")
    try:
        sent, received = (
            int((folder / f"{way}_bytes").read_text())
            - _HEADER_BYTES * int((folder / f"{way}_packets").read_text())
            for way in ("tx", "rx")
        )
    except (OSError, ValueError):
        return None
    return sent, received
