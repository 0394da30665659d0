"""Whether one model answers a task better than another, from the same items answered by both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from c2r.errors import InputError
from c2r.types import Bool, Float

_NUM_RESAMPLES = 10_000  # 250 beyond each end of the interval: its ends move little with the seed
_QUANTILES = (0.025, 0.975)  # 95 % intervals
_SIGNIFICANCE = 0.05
_FEWEST_ITEMS = 6  # that must differ, all one way, for McNemar's p to be below 5 %: 2 / 2^6


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Accuracy against a reference on the same items.

    Over several tasks, accuracies and their difference are means over tasks.

    Attributes:
        num_items: items of all tasks.
        accuracy: share of items that are correct.
        reference_accuracy: the reference's.
        difference: `accuracy - reference_accuracy`.
        interval: 95 % interval of the difference: percentiles of the paired bootstrap, items
            resampled within each task.
        num_gained: items that only this model has right.
        num_lost: items that only the reference has right.
        p_value: of McNemar's exact test, two-sided, items of all tasks taken together.
        detectable: a difference below this could not have been shown with these items: half the
            interval's width, but at least that of the six items which McNemar's test needs.
    """

    num_items: int
    accuracy: float
    reference_accuracy: float
    difference: float
    interval: tuple[float, float]
    num_gained: int
    num_lost: int
    p_value: float
    detectable: float

    @property
    def is_shown(self) -> bool:
        """Whether there is a difference: 0 is outside the interval, and p at most 5 %."""
        low, high = self.interval
        return not low <= 0 <= high and self.p_value <= _SIGNIFICANCE


def compare_accuracy(
    correct: Sequence[Bool], reference: Sequence[Bool], *, seed: int = 0
) -> Comparison:
    """Compares which items of one or more tasks were answered right.

    Args:
        correct: `[items]` of each task.
        reference: the same items as the reference answered them.
        seed: draws the resamples.

    Raises:
        InputError: no task, one without items, or numbers of items that differ.
    """
    sizes, others = [len(task) for task in correct], [len(task) for task in reference]
    if sizes != others or not sizes or not all(sizes):
        raise InputError(
            f"tasks of {sizes} items cannot be compared with tasks of {others}; give the same "
            "items, at least one of each task"
        )
    pairs = list(zip(correct, reference, strict=True))
    differences = [ours.astype(np.int8) - theirs.astype(np.int8) for ours, theirs in pairs]
    gained = sum(int((task > 0).sum()) for task in differences)
    lost = sum(int((task < 0).sum()) for task in differences)
    rng = np.random.default_rng(seed)
    # Resampled within tasks, so that small tasks weigh as much as large ones, as in the mean.
    resampled = np.mean([_resampled_means(task, rng) for task in differences], axis=0)
    low, high = np.quantile(resampled, _QUANTILES).tolist()
    return Comparison(
        num_items=sum(sizes),
        accuracy=_mean_of_tasks(correct),
        reference_accuracy=_mean_of_tasks(reference),
        difference=_mean_of_tasks(differences),
        interval=(low, high),
        num_gained=gained,
        num_lost=lost,
        p_value=mcnemar(gained, lost),
        detectable=max((high - low) / 2, _FEWEST_ITEMS / (len(sizes) * max(sizes))),
    )


def mcnemar(num_gained: int, num_lost: int) -> float:
    """McNemar's exact p, two-sided: chance of so uneven a split of the items that differ."""
    num_differing = num_gained + num_lost
    ways = sum(math.comb(num_differing, n) for n in range(min(num_gained, num_lost) + 1))
    chance: float = 2 * ways / 2**num_differing
    return min(1.0, chance)


def _mean_of_tasks(values: Sequence[npt.NDArray[np.generic]]) -> float:
    return float(np.mean([task.mean() for task in values]))


def _resampled_means(values: npt.NDArray[np.int8], rng: np.random.Generator) -> Float:
    size = len(values)
    # One at a time: a table of all draws would hold 10,000 indices for each item.
    draws = (rng.integers(size, size=size) for _ in range(_NUM_RESAMPLES))
    return np.array([values[drawn].mean() for drawn in draws])
