"""How well a model predicts text, with and without its constraint."""

from c2r.evaluation.loss import Evaluation, evaluate, token_losses
from c2r.evaluation.parallel import ParallelEvaluation, evaluate_parallel

__all__ = [
    "Evaluation",
    "ParallelEvaluation",
    "evaluate",
    "evaluate_parallel",
    "token_losses",
]
