"""How well a language model predicts text, and how it routes while it does."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.adapters.huggingface import capture, describe_model
from c2r.errors import InputError
from c2r.profiling import CollaborationProfile
from c2r.traces import ProfileBuilder


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Mean next-token loss in nats over `num_tokens` predicted tokens, and the routing seen.

    `profile` counts the routing of all tokens of the text, under the policy in force.
    """

    loss: float
    num_tokens: int
    profile: CollaborationProfile

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


def evaluate(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """The held-out loss of an MoE model and its routing, in one pass; padding is not counted.

    Args:
        model: a causal language model, constrained or not; its training mode is restored.
        batches: dicts of `input_ids` and `attention_mask`, `[batch, seq_len]`.
        on_batch: called with the tokens of each batch, for progress.

    Raises:
        InputError: the batches hold no token to predict.
        ModelError, RoutingError: as `c2r.capture`.
    """
    builder = ProfileBuilder()
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), capture(model) as recorder:
            for batch in batches:
                losses = token_losses(model, batch)
                trace = recorder.take()
                builder.update(trace)
                total += losses.double().sum().item()
                count += len(losses)
                if on_batch:
                    on_batch(trace.num_tokens)
    finally:
        model.train(was_training)
    profile = builder.build(describe_model(model))
    if count == 0 or profile is None:
        raise InputError("the text holds no token to predict; give more text")
    return Evaluation(loss=total / count, num_tokens=count, profile=profile)


def token_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Loss in nats `[predicted tokens]` of each token that has a predecessor, padding left out."""
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses[(mask[:, 1:] * mask[:, :-1]).flatten().bool()]
