"""The measured curve of quality against traffic, and the point of it that a report speaks of."""

from dataclasses import dataclass
from typing import Any

from c2r.planning import Plan
from c2r.reporting.inputs import Document

_ALLOWED_INCREASE = 0.003  # of the loss, where no plan says which point was chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenPoint:
    """A point of a sweep, and why this one."""

    point: Document
    reason: str


def loss_increase(sweep: Document, point: Document) -> float:
    """Relative increase of the loss over plain top-k: 0.003 is 0.3 % more."""
    known = point.get("loss_increase")
    return float(point["loss"] / sweep["baseline"]["loss"] - 1 if known is None else known)


def contiguous_copies(sweep: Document) -> float:
    """Copies per token of plain top-k with the experts in the order of their ids.

    Those of the baseline as placed, where the sweep does not say.
    """
    known = sweep["baseline"].get("copies_contiguous")
    return float(sweep["baseline"]["copies"] if known is None else known)


def choose_point(sweep: Document, plan: Plan | None) -> ChosenPoint:
    """The point that `plan` is, or without one the cheapest at nearly the same quality."""
    points = sweep["points"]
    if plan is not None:
        for point in (*points, sweep["baseline"]):
            if _is_of(point, plan):
                return ChosenPoint(point=point, reason="the plan given")
    near = [point for point in points if loss_increase(sweep, point) <= _ALLOWED_INCREASE]
    missing = "no plan is given" if plan is None else "the plan given was not measured"
    if near:
        return ChosenPoint(
            point=min(near, key=lambda point: float(point["copies"])),
            reason=f"{missing}; this is the measured point with the fewest copies within "
            f"+{100 * _ALLOWED_INCREASE:g} % loss",
        )
    return ChosenPoint(
        point=min(points, key=lambda point: loss_increase(sweep, point)),
        reason=f"{missing}; this is the measured point with the least loss",
    )


def name_of(point: Document) -> str:
    """Policy and strength in a few letters: `c2r 8`."""
    return (
        f"{point.get('policy', 'plain top-k')} {name_strength(point.get('strength', ''))}".strip()
    )


def name_strength(strength: Any) -> str:
    """One number, or the range of several."""
    if isinstance(strength, list) and strength:
        return " to ".join(f"{value:g}" for value in dict.fromkeys((min(strength), max(strength))))
    return f"{strength:g}" if isinstance(strength, int | float) else str(strength)


def _is_of(point: Document, plan: Plan) -> bool:
    if "plan_fingerprint" in point:
        return bool(point["plan_fingerprint"] == plan.fingerprint)
    strengths = point.get("strength")
    if not isinstance(strengths, list):
        strengths = [strengths] * plan.num_layers
    ours = [(layer.policy, layer.strength) for layer in plan.layers]
    return ours == [(point.get("policy"), strength) for strength in strengths]
