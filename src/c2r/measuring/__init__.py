"""Measures a model on text: its loss and what its layers send, under one plan or several."""

from c2r.measuring.loss import Evaluation, evaluate, token_losses
from c2r.measuring.measure import (
    check_predicted,
    free_plan,
    keeping_plan,
    measure_plan,
    measure_plans,
    unconstrained,
)
from c2r.measuring.over_ranks import ParallelEvaluation, evaluate_parallel
from c2r.measuring.tally import Figures, RoutingTally, Tally

__all__ = [
    "Evaluation",
    "Figures",
    "ParallelEvaluation",
    "RoutingTally",
    "Tally",
    "check_predicted",
    "evaluate",
    "evaluate_parallel",
    "free_plan",
    "keeping_plan",
    "measure_plan",
    "measure_plans",
    "token_losses",
    "unconstrained",
]
