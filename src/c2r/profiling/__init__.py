"""Which experts collaborate: a mergeable collaboration profile, and metrics of it."""

from c2r.profiling.drawn import draw_profile
from c2r.profiling.id_builder import IdProfileBuilder
from c2r.profiling.merging import merge_all, merge_files
from c2r.profiling.metrics import CollaborationMetrics, mean_metrics, measure_collaboration
from c2r.profiling.profile import CollaborationProfile, LayerProfile
from c2r.profiling.sets import RoutingSets, SetCounter

__all__ = [
    "CollaborationMetrics",
    "CollaborationProfile",
    "IdProfileBuilder",
    "LayerProfile",
    "RoutingSets",
    "SetCounter",
    "draw_profile",
    "mean_metrics",
    "measure_collaboration",
    "merge_all",
    "merge_files",
]
