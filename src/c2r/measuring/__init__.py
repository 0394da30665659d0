"""Traffic and load, predicted from a profile and a plan; clocks, and what their times say."""

from c2r.measuring.matrix import RankTraffic, predict_rank_traffic
from c2r.measuring.timing import Spread, Stopwatch, interface_bytes, spread_of_ratios
from c2r.measuring.traffic import (
    LayerTraffic,
    TrafficReport,
    bytes_per_token,
    count_rows,
    predict_traffic,
)

__all__ = [
    "LayerTraffic",
    "RankTraffic",
    "Spread",
    "Stopwatch",
    "TrafficReport",
    "bytes_per_token",
    "count_rows",
    "interface_bytes",
    "predict_rank_traffic",
    "predict_traffic",
    "spread_of_ratios",
]
