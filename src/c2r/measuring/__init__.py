"""Traffic and load, predicted from a profile and a plan."""

from c2r.measuring.traffic import LayerTraffic, TrafficReport, bytes_per_token, predict_traffic

__all__ = ["LayerTraffic", "TrafficReport", "bytes_per_token", "predict_traffic"]
