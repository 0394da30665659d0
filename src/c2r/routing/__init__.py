"""Routing policies: selection scores in, chosen experts out."""

from c2r.routing.policy import (
    BudgetedPolicy,
    C2RPolicy,
    GroupLimitedPolicy,
    RoutingPolicy,
    TopKPolicy,
    make_policy,
)

__all__ = [
    "BudgetedPolicy",
    "C2RPolicy",
    "GroupLimitedPolicy",
    "RoutingPolicy",
    "TopKPolicy",
    "make_policy",
]
