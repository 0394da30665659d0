"""The section of a report that shows where time goes: by rank and by layer, before and after."""

from collections.abc import Callable, Sequence

import numpy as np

from c2r.prediction.shares import RankShares
from c2r.reporting.charts import Chart, Section, Series
from c2r.reporting.times import Times
from c2r.types import Float


def show_time(times: Times) -> Section:
    """A bar for each rank, of what it computes, sends and receives; and the time of each layer."""
    sides = {"before": times.before, "after": times.after}
    by_rank = tuple(
        Chart(
            slug=f"ranks-{slug}",
            title=f"Rows that each rank {slug}",
            x_label="rank",
            y_label="rows for each of a rank's tokens",
            series=tuple(
                _by_place(name, _mean(of, side.shares).tolist()) for name, side in sides.items()
            ),
            style="columns",
        )
        for slug, of in (("computes", _computed), ("sends", _sent), ("receives", _received))
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
    before, after = times.before.time, times.after.time
    return Section(
        slug="time",
        title="Where the time goes",
        text=f"Predicted for {times.setting.name}. A layer is through when its last rank is: the "
        "highest column decides. Rows are means over layers, of a token to another rank and of a "
        f"token to an expert. The longest exchange is {before.layers[0].busiest_link} before, "
        f"{after.layers[0].busiest_link} after, in the first layer; the fastest dispatch is "
        f"{before.dispatcher} before, {after.dispatcher} after.",
        charts=(*by_rank, by_layer),
    )


def _by_place(name: str, values: Sequence[float]) -> Series:
    return Series(name=name, x=tuple(range(len(values))), y=tuple(values))


def _mean(of: Callable[[RankShares], Float], shares: Sequence[RankShares]) -> Float:
    mean: Float = np.mean([of(layer) for layer in shares], axis=0)
    return mean


def _computed(layer: RankShares) -> Float:
    return layer.rows * len(layer.rows)


def _sent(layer: RankShares) -> Float:
    """A rank has its share of the tokens, which visit the others as all tokens do."""
    sent: Float = layer.visits.sum() - layer.visits
    return sent


def _received(layer: RankShares) -> Float:
    return layer.visits * (len(layer.visits) - 1)
