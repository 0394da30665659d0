"""Routing policies: selection scores in, chosen experts out."""

from c2r.routing.policy import (
    BudgetedPolicy,
    C2RPolicy,
    GroupLimitedPolicy,
    PricedPolicy,
    PrunedPolicy,
    RoutingPolicy,
    TopKPolicy,
    make_policy,
)

__all__ = [
    "BudgetedPolicy",
    "C2RPolicy",
    "GroupLimitedPolicy",
    "PricedPolicy",
    "PrunedPolicy",
    "RoutingPolicy",
    "TopKPolicy",
    "make_policy",
]
