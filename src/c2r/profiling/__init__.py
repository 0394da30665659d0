"""Which experts collaborate: traces in, a mergeable collaboration profile out, metrics of it."""

from c2r.profiling.builder import ProfileBuilder
from c2r.profiling.ids import IdProfileBuilder
from c2r.profiling.metrics import CollaborationMetrics, mean_metrics, measure_collaboration
from c2r.profiling.profile import CollaborationProfile, LayerProfile
from c2r.profiling.sets import RoutingSets

__all__ = [
    "CollaborationMetrics",
    "CollaborationProfile",
    "IdProfileBuilder",
    "LayerProfile",
    "ProfileBuilder",
    "RoutingSets",
    "mean_metrics",
    "measure_collaboration",
]
