"""Searches for the placement, and for what to replicate."""

from c2r.planning.placement.place import PlacementOptions, check_ranks, place_experts
from c2r.planning.placement.replicas import replicate_experts

__all__ = [
    "PlacementOptions",
    "check_ranks",
    "place_experts",
    "replicate_experts",
]
