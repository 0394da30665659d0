"""Profile and devices in, plan out. Knows neither models nor process groups."""

from c2r.planning.plan import LayerPlan, Plan
from c2r.planning.topology import ClusterTopology

__all__ = ["ClusterTopology", "LayerPlan", "Plan"]
