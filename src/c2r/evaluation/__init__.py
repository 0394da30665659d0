"""How well a model predicts text, with and without its constraint."""

from c2r.evaluation.loss import HeldOutLoss, heldout_loss

__all__ = ["HeldOutLoss", "heldout_loss"]
