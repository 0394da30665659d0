"""The section of a report that shows where time goes: by rank and by layer, before and after."""

from collections.abc import Callable, Sequence

import numpy as np

from c2r.prediction.rows import dispatch_words
from c2r.prediction.shares import RankShares
from c2r.reporting.charts import Chart, Section, Series
from c2r.reporting.times import Times
from c2r.types import Float


def show_time(times: Times) -> Section:
    """What each rank computes and receives, and the time of each layer."""
    sides = {"before": times.before, "after": times.after}
    by_rank = tuple(
        Chart(
            slug=f"ranks-{slug}",
            title=f"Rows that each rank {slug}",
            x_label="ranks of a layer, the busiest first",
            y_label="rows for each of its own tokens, mean over layers",
            series=tuple(_by_place(name, _ranked(of, side.shares)) for name, side in sides.items()),
            style="columns",
        )
        for slug, of in (("computes", _computed), ("receives", _received))
    )
    by_layer = Chart(
        slug="time-by-layer",
        title="Time of each MoE layer",
        x_label="layer",
        y_label="milliseconds, predicted",
        series=tuple(
            _by_place(name, [layer.total for layer in side.time.layers])
            for name, side in sides.items()
        ),
    )
    return Section(
        slug="time",
        title="Where the time goes",
        text="A layer is through when its last rank is: the busiest rank decides. Rows are sent "
        f"{dispatch_words(times.before.time.dispatcher, times.after.time.dispatcher)}.",
        charts=(*by_rank, by_layer),
    )


def _by_place(name: str, values: Sequence[float]) -> Series:
    return Series(name=name, x=tuple(range(len(values))), y=tuple(values))


def _ranked(of: Callable[[RankShares], Float], shares: Sequence[RankShares]) -> list[float]:
    """The rows of the busiest rank, mean over layers, then of the next: each layer has its own.

    A mean by the number of the rank would hide that a layer waits for its busiest, whichever it is.
    """
    ranked: list[float] = np.mean([np.sort(of(each))[::-1] for each in shares], axis=0).tolist()
    return ranked


def _computed(layer: RankShares) -> Float:
    return layer.rows * len(layer.rows)


def _received(layer: RankShares) -> Float:
    return layer.visits * (len(layer.visits) - 1)
