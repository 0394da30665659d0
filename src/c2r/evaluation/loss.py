"""Held-out loss of a language model."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutLoss:
    """Mean next-token loss in nats over `num_tokens` predicted tokens."""

    loss: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


def heldout_loss(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    on_batch: Callable[[int], None] | None = None,
) -> HeldOutLoss:
    """The mean next-token loss of `model` over `batches`; padding is not counted.

    Args:
        model: a causal language model; its training mode is restored.
        batches: dicts of `input_ids` and `attention_mask`, `[batch, seq_len]`.
        on_batch: called with the tokens of each batch, for progress.

    Raises:
        InputError: the batches hold no token to predict.
    """
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                losses = token_losses(model, batch)
                total += losses.double().sum().item()
                count += len(losses)
                if on_batch:
                    on_batch(int(batch["attention_mask"].sum()))
    finally:
        model.train(was_training)
    if count == 0:
        raise InputError("the text holds no token to predict; give more text")
    return HeldOutLoss(loss=total / count, num_tokens=count)


def token_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Loss in nats `[predicted tokens]` of each token that has a predecessor, padding left out."""
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses[(mask[:, 1:] * mask[:, :-1]).flatten().bool()]
