"""One forward pass of a language model, as all that measures it here takes it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.adapters.huggingface import (
    capture,
    eager,
    evaluating,
    forward_inputs,
    model_type,
    read_batch,
    runner,
    unwrapped,
)
from c2r.errors import ModelError
from c2r.traces import RoutingTrace

NO_LOSS = -100
"""The label that transformers, and torch's cross-entropy, leave out of a loss."""

Batch = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ForwardPass:
    """What a model says of one batch.

    Attributes:
        logits: `[batch, seq_len, vocabulary]`.
        targets: `[batch, seq_len]` the token that follows each; `NO_LOSS` where none counts.
    """

    logits: Tensor
    targets: Tensor

    @property
    def is_predicted(self) -> Tensor:
        """`[batch, seq_len]` bool: the tokens whose next one counts."""
        return self.targets != NO_LOSS

    @property
    def losses(self) -> Tensor:
        """Nats `[predicted]` of each token that counts."""
        kept = self.is_predicted
        return F.cross_entropy(self.logits[kept].float(), self.targets[kept], reduction="none")


@torch.no_grad()
def forward(model: Any, batch: Batch) -> ForwardPass:
    """Runs a causal language model on a batch, without cache and gradients.

    Args:
        model: in the mode that it shall run in.
        batch: `input_ids` and what else the model takes, `[batch, seq_len]` as a rule, or as
            `read_batch` reads it. The model is shown all but the `labels`.

    Raises:
        InputError: the batch is none that the model takes.
        ModelError: the model gives no logits.
    """
    found = read_batch(model, batch)
    _, inputs = forward_inputs(model, [unwrapped(model)], found)
    output = runner(model)(**inputs, use_cache=False)
    logits = getattr(output, "logits", None)
    if logits is None:
        raise ModelError(
            f"{model_type(model)} gives no logits, so that it has no loss; give the model with its "
            "language-model head"
        )
    return ForwardPass(logits=logits, targets=next_token_targets(found).to(logits.device))


@contextmanager
def observing(model: Any) -> Iterator[Callable[[Batch], tuple[ForwardPass, RoutingTrace]]]:
    """Gives what runs `model` on a batch, in evaluation mode, and tells how it routed.

    Padding is left out of the trace, as `attention_mask` tells it. Every module's mode is put back
    after the block.

        with observing(model) as observe:
            found, trace = observe(batch)

    Raises:
        ModelError, InputError: as `capture`.
        RoutingError: a router gives NaN scores.
    """
    with evaluating(model), capture(model) as recorder:

        def observe(batch: Batch) -> tuple[ForwardPass, RoutingTrace]:
            with eager():
                found = forward(model, batch)
            return found, recorder.take()

        yield observe


def next_token_targets(batch: Batch) -> Tensor:
    """For each position the token that follows it, `[batch, seq_len]`; `NO_LOSS` where none counts.

    The `labels` of the batch say which tokens count. Without labels a token counts if neither it
    nor the one before it is padding, and its position is the next one: that of a packed piece's
    first token is not.
    """
    if "labels" in batch:
        following = batch["labels"][:, 1:]
    else:
        following = batch["input_ids"][:, 1:]
        following = _of_one_piece(following, batch.get("position_ids"))
        mask = batch.get("attention_mask")
        if mask is not None:
            following = following.masked_fill(mask[:, 1:] * mask[:, :-1] == 0, NO_LOSS)
    return F.pad(following, (0, 1), value=NO_LOSS)


def _of_one_piece(following: Tensor, positions: Tensor | None) -> Tensor:
    if positions is None or positions.ndim != 2:  # multi-modal models have three of each token
        return following
    steps = (positions[:, 1:] - positions[:, :-1]).to(following.device)
    return following.masked_fill(steps != 1, NO_LOSS)
