"""The default strengths of each policy in a sweep."""

from collections.abc import Sequence

import numpy as np

from c2r.errors import PlanError
from c2r.planning import STRENGTH_NAMES, LayerShape, parse_policy
from c2r.results import Strength, SweepPoint

DEFAULT_POLICIES = ("c2r", "c2r_placed", "group_limited", "budgeted", "pruned", "priced")

_SHARES_OF_EXPERTS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
_SHARES_OF_MASS = {
    "budgeted": (0.02, 0.05, 0.1, 0.2, 0.3),
    "pruned": (0.05, 0.1, 0.2, 0.3, 0.4),
    "priced": (0.01, 0.03, 0.06, 0.1, 0.2),
}


def default_points(
    policy: str, layers: Sequence[LayerShape], num_ranks: int
) -> tuple[SweepPoint, ...]:
    """Up to five strengths, the tightest first for lists and ranks.

    T runs from k - 1 over shares of the experts, so layers that differ get lists of their own
    lengths. m runs over the numbers of ranks, or the powers of two among them. Strengths that
    some layer cannot take are left out.

    Raises:
        PlanError: the policy is unknown, or has no strength to sweep.
    """
    match STRENGTH_NAMES.get(policy):
        case "T":
            strengths: Sequence[Strength] = _list_lengths(layers)
        case "m":
            strengths = _numbers_of_ranks(layers, num_ranks)
        case "eps" | "price":
            strengths = _SHARES_OF_MASS[policy]
        case _:
            raise PlanError(
                f"policy {policy!r} cannot be swept; choose from {', '.join(DEFAULT_POLICIES)}"
            )
    return tuple(SweepPoint(policy=policy, strength=strength) for strength in strengths)


def parse_points(text: str, layers: Sequence[LayerShape], num_ranks: int) -> tuple[SweepPoint, ...]:
    """The points of `budgeted=0.05,0.1`, or the `default_points` for `budgeted`.

    Raises:
        InputError, PlanError: as `parse_policy` and `default_points`.
    """
    policy, strengths = parse_policy(text)
    if not strengths:
        return default_points(policy, layers, num_ranks)
    return tuple(SweepPoint(policy=policy, strength=value) for value in strengths)


def _list_lengths(layers: Sequence[LayerShape]) -> list[Strength]:
    per_share = [
        [float(max(layer.top_k - 1, round(share * layer.num_experts))) for layer in layers]
        for share in (0, *_SHARES_OF_EXPERTS)
    ]
    rows = [
        [min(length, layer.num_experts - 1.0) for length, layer in zip(row, layers, strict=True)]
        for row in per_share
    ]
    distinct = [row for index, row in enumerate(rows) if row not in rows[:index]]
    return [row[0] if len(set(row)) == 1 else tuple(row) for row in distinct]


def _numbers_of_ranks(layers: Sequence[LayerShape], num_ranks: int) -> list[float]:
    numbers = np.arange(1, num_ranks) if num_ranks <= 6 else 2 ** np.arange(0, 12)
    least = max(-(-layer.top_k // max(layer.num_experts // num_ranks, 1)) for layer in layers)
    return [float(m) for m in numbers if least <= m < num_ranks][-5:]
