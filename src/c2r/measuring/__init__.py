"""Traffic and load, predicted from a profile and a plan."""

from c2r.measuring.matrix import RankTraffic, predict_rank_traffic
from c2r.measuring.traffic import LayerTraffic, TrafficReport, bytes_per_token, predict_traffic

__all__ = [
    "LayerTraffic",
    "RankTraffic",
    "TrafficReport",
    "bytes_per_token",
    "predict_rank_traffic",
    "predict_traffic",
]
