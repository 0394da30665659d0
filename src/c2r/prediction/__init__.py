"""Predicts from a profile and a plan what will be sent, and how load falls. Runs no model."""

from c2r.prediction.rank_traffic import RankTraffic, predict_rank_traffic
from c2r.prediction.traffic import (
    LayerTraffic,
    TrafficReport,
    bytes_per_token,
    predict_layer,
    predict_traffic,
    rows_per_rank,
    sets_on,
)

__all__ = [
    "LayerTraffic",
    "RankTraffic",
    "TrafficReport",
    "bytes_per_token",
    "predict_layer",
    "predict_rank_traffic",
    "predict_traffic",
    "rows_per_rank",
    "sets_on",
]
