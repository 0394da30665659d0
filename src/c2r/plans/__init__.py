"""The plan and what follows from it: who computes an expert, how many ranks a token visits."""

from c2r.plans.contiguous import contiguous_placement, rank_sizes
from c2r.plans.copies import (
    count_copies,
    count_distinct,
    count_visits,
    load_max_over_mean,
    mean_copies,
    mean_distinct,
    mean_node_copies,
    rank_loads,
    remote_share,
    row_loads,
)
from c2r.plans.holders import NO_EXPERTS, assign_ranks, holders_of
from c2r.plans.plan import LayerPlan, Plan
from c2r.plans.topology import ClusterTopology

__all__ = [
    "NO_EXPERTS",
    "ClusterTopology",
    "LayerPlan",
    "Plan",
    "assign_ranks",
    "contiguous_placement",
    "count_copies",
    "count_distinct",
    "count_visits",
    "holders_of",
    "load_max_over_mean",
    "mean_copies",
    "mean_distinct",
    "mean_node_copies",
    "rank_loads",
    "rank_sizes",
    "remote_share",
    "row_loads",
]
