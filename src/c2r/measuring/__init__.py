"""Measures a model on text: its loss and what its layers send, under one plan or several."""

from c2r.measuring.forward import NO_LOSS, ForwardPass, forward, next_token_targets, observing
from c2r.measuring.over_ranks import RunResult, run
from c2r.measuring.tally import RoutingTally, Tally
from c2r.measuring.under_plans import (
    check_predicted,
    free_plan,
    gather_tallies,
    keeping_plan,
    measure,
    measure_plans,
    unconstrained,
)

__all__ = [
    "NO_LOSS",
    "ForwardPass",
    "RoutingTally",
    "RunResult",
    "Tally",
    "check_predicted",
    "forward",
    "free_plan",
    "gather_tallies",
    "keeping_plan",
    "measure",
    "measure_plans",
    "next_token_targets",
    "observing",
    "run",
    "unconstrained",
]
