"""Profile and devices in, plan out. Knows neither models nor process groups."""

from c2r.planning.make_plan import make_plan
from c2r.planning.partners import rank_partners
from c2r.planning.placement import (
    PlacementOptions,
    assign_ranks,
    contiguous_placement,
    mean_copies,
    mean_node_copies,
    mean_remote_copies,
    place_experts,
    replicate_experts,
)
from c2r.planning.plan import LayerPlan, Plan
from c2r.planning.topology import ClusterTopology

__all__ = [
    "ClusterTopology",
    "LayerPlan",
    "PlacementOptions",
    "Plan",
    "assign_ranks",
    "contiguous_placement",
    "make_plan",
    "mean_copies",
    "mean_node_copies",
    "mean_remote_copies",
    "place_experts",
    "rank_partners",
    "replicate_experts",
]
