"""Loss and traffic of a model on held-out examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from c2r.adapters.huggingface import capture, enforce, prepare
from c2r.adapters.huggingface.routers.sites import evaluating
from c2r.errors import InputError
from c2r.measuring import RoutingTally
from c2r.plans import Plan
from c2r.training.data import NO_LOSS, Example
from c2r.training.losses import cross_entropy_sum, next_token_labels
from c2r.training.trainer import batch_of


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Figures of held-out examples under one plan.

    Attributes:
        loss: nats per predicted token.
        num_predicted: predicted tokens.
        copies: distinct ranks that a token visits, mean over tokens and layers.
        rank_load_max_over_mean: expert rows of the busiest rank over the mean; mean over layers.
    """

    loss: float
    num_predicted: int
    copies: float
    rank_load_max_over_mean: float


def split_examples(
    examples: Sequence[Example], share: float
) -> tuple[Sequence[Example], Sequence[Example]]:
    """The first examples, to train on, and the last `share` of them, at least one, to hold out.

    Raises:
        InputError: nothing would be left to train on.
    """
    count = max(round(len(examples) * share), 1)
    if count >= len(examples):
        raise InputError(
            f"{len(examples)} windows cannot be split into training and held-out data; give more "
            "data, shorter windows, or eval data of its own"
        )
    return examples[:-count], examples[-count:]


def measure_held_out(
    model: Any, examples: Sequence[Example], plan: Plan, batch_size: int = 8
) -> HeldOut:
    """The figures of `examples` under `plan`, which stays applied.

    Raises:
        PlanMismatchError: the plan was made for another model.
        RoutingError: a router gives NaN scores.
    """
    enforce(model, prepare(model, plan, strict=False))
    total, num_predicted, tally = 0.0, 0, None
    with evaluating(model), torch.no_grad(), capture(model) as recorder:
        for start in range(0, len(examples), batch_size):
            batch = batch_of(examples[start : start + batch_size])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            targets = next_token_labels(batch.pop("labels"))
            mask = batch.pop("attention_mask").flatten().bool()
            is_predicted = targets != NO_LOSS
            logits = model(**batch, use_cache=False).logits[is_predicted]
            total += float(cross_entropy_sum(logits, targets[is_predicted]))
            num_predicted += len(logits)
            counted = RoutingTally.count(recorder.take().of_tokens(mask), plan)
            if tally is None:
                tally = counted
            else:
                tally.add(counted)
    if tally is None or not num_predicted:
        raise InputError("the held-out data has no token to predict; give more")
    means = tally.means()
    return HeldOut(
        loss=total / num_predicted,
        num_predicted=num_predicted,
        copies=means["copies"],
        rank_load_max_over_mean=means["rank_load_max_over_mean"],
    )
