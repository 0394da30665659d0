"""Predicts traffic and load of a plan from a profile. Runs no model."""

from c2r.prediction.rank_traffic import RankTraffic, predict_rank_traffic
from c2r.prediction.traffic import (
    LayerTraffic,
    TrafficReport,
    bytes_per_token,
    predict_traffic,
    rows_per_rank,
)

__all__ = [
    "LayerTraffic",
    "RankTraffic",
    "TrafficReport",
    "bytes_per_token",
    "predict_rank_traffic",
    "predict_traffic",
    "rows_per_rank",
]
