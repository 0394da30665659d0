"""Placement: which rank holds which expert, and what that costs."""

from c2r.planning.placement.balance import contiguous_placement
from c2r.planning.placement.copies import (
    count_copies,
    count_distinct,
    load_max_over_mean,
    mean_copies,
    mean_distinct,
    mean_node_copies,
    mean_remote_copies,
    rank_loads,
    row_loads,
)
from c2r.planning.placement.holders import assign_ranks, holders_of
from c2r.planning.placement.place import PlacementOptions, check_ranks, place_experts
from c2r.planning.placement.replicas import replicate_experts

__all__ = [
    "PlacementOptions",
    "assign_ranks",
    "check_ranks",
    "contiguous_placement",
    "count_copies",
    "count_distinct",
    "holders_of",
    "load_max_over_mean",
    "mean_copies",
    "mean_distinct",
    "mean_node_copies",
    "mean_remote_copies",
    "place_experts",
    "rank_loads",
    "replicate_experts",
    "row_loads",
]
