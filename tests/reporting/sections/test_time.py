"""The section that shows by rank and by layer where time goes."""

import numpy as np

from c2r.prediction import PRESETS
from c2r.prediction.shares import RankShares
from c2r.prediction.time import step_time
from c2r.prediction.workload import UNKNOWN_SIZES, Phase, Workload
from c2r.reporting.sections.time import show_time
from c2r.reporting.times import Setting, Side, Times

SETTING = Setting(
    cluster=PRESETS["h100-8"].of_size(2, 1),
    workload=Workload(sizes=UNKNOWN_SIZES, tokens_per_rank=4096, phase=Phase.PREFILL),
)


def side_of(*layers):
    """Layers whose two ranks compute so many rows per token of the batch."""
    shares = tuple(
        RankShares(rows=np.array(rows), visits=np.array(rows) / 2, node_visits=np.ones(1))
        for rows in layers
    )
    time = step_time(shares, SETTING.cluster, SETTING.workload, "zero_redundancy")
    return Side(shares=shares, time=time)


def test_the_busiest_rank_of_each_layer_stands_first():
    """By number each rank has 2 rows in the mean of the layers: that would look even."""
    before, after = side_of((1.5, 0.5), (0.5, 1.5)), side_of((1.25, 0.75), (1.25, 0.75))
    times = Times(setting=SETTING, before=before, after=after, is_measured=False)
    computes = show_time(times).charts[0]
    assert {series.name: series.y for series in computes.series} == {
        "before": (3.0, 1.0),
        "after": (2.5, 1.5),
    }
