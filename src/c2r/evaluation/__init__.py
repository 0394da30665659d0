"""How well a model predicts text, with and without its constraint."""

from c2r.evaluation.loss import Evaluation, evaluate, token_losses

__all__ = ["Evaluation", "evaluate", "token_losses"]
