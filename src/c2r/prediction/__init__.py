"""Predicts from a profile and a plan what is sent, how load falls and how long a layer takes.

Runs no model.
"""

from c2r.prediction.cluster import PRESETS, Cluster, find_cluster
from c2r.prediction.rows import DISPATCHERS
from c2r.prediction.time import (
    LayerTime,
    StepTime,
    best_time,
    predict_time,
)
from c2r.prediction.traffic import (
    LayerTraffic,
    TrafficReport,
    bytes_per_token,
    predict_layer,
    predict_traffic,
    rows_per_rank,
    sets_on,
)
from c2r.prediction.workload import ModelSizes, Phase, Workload
from c2r.prediction.worth import Saving, Worth, break_even_tokens

__all__ = [
    "DISPATCHERS",
    "PRESETS",
    "Cluster",
    "LayerTime",
    "LayerTraffic",
    "ModelSizes",
    "Phase",
    "Saving",
    "StepTime",
    "TrafficReport",
    "Workload",
    "Worth",
    "best_time",
    "break_even_tokens",
    "bytes_per_token",
    "find_cluster",
    "predict_layer",
    "predict_time",
    "predict_traffic",
    "rows_per_rank",
    "sets_on",
]
