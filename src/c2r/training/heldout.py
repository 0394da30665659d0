"""How well a model predicts held-out windows, and what it sends meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from c2r.adapters.huggingface import enforce, prepare
from c2r.errors import InputError
from c2r.measuring import RoutingTally, observing
from c2r.plans import Plan
from c2r.training.data import Window, collate
from c2r.training.losses import cross_entropy_sum


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Figures of held-out windows under one plan.

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


def split_windows(
    windows: Sequence[Window], share: float
) -> tuple[Sequence[Window], Sequence[Window]]:
    """The first windows, to train on, and the last `share` of them, at least one, to hold out.

    Raises:
        InputError: nothing would be left to train on.
    """
    count = max(round(len(windows) * share), 1)
    if count >= len(windows):
        raise InputError(
            f"{len(windows)} windows cannot be split into training and held-out data; give more "
            "data, shorter windows, or eval data of its own"
        )
    return windows[:-count], windows[-count:]


def measure_held_out(
    model: Any, windows: Sequence[Window], plan: Plan, batch_size: int = 8
) -> HeldOut:
    """The figures of `windows` under `plan`, which stays applied.

    Raises:
        PlanMismatchError: the plan was made for another model.
        RoutingError: a router gives NaN scores.
    """
    enforce(model, prepare(model, plan, strict=False))
    total, num_predicted, tally = 0.0, 0, None
    with observing(model) as observe:
        for start in range(0, len(windows), batch_size):
            batch = collate(windows[start : start + batch_size])
            mask = batch.pop("attention_mask").flatten().bool()  # positions tell packed pieces
            found, trace = observe(batch)
            kept = found.is_predicted
            total += float(cross_entropy_sum(found.logits[kept], found.targets[kept]))
            num_predicted += int(kept.sum())
            counted = RoutingTally.count(trace.of_tokens(mask.to(kept.device)), plan)
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
