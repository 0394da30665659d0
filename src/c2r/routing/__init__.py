"""Routing policies: selection scores in, chosen experts out."""

from c2r.routing.policy import (
    C2RPolicy,
    RankPolicy,
    RoutingPolicy,
    TopKPolicy,
    make_policy,
)

__all__ = [
    "C2RPolicy",
    "RankPolicy",
    "RoutingPolicy",
    "TopKPolicy",
    "make_policy",
]
