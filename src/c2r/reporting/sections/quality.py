"""The measured curve of quality against traffic, and the point of it that a report speaks of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from c2r.plans import Plan
from c2r.reporting.charts import Chart, Section, Series, table_of
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

    The copies of the baseline as placed, where the sweep does not say.
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


def show_quality(sweep: Document, plan: Plan | None) -> Section:
    """Loss against copies of every policy that was measured, the chosen point marked."""
    chosen = choose_point(sweep, plan)
    baseline = sweep["baseline"]
    lines: dict[str, list[Document]] = {}
    for point in sorted(sweep["points"], key=lambda point: float(point["copies"])):
        lines.setdefault(str(point["policy"]), []).append(point)
    series = [_curve(name, sweep, points) for name, points in lines.items()]
    plain = {"plain top-k, placed": float(baseline["copies"])}
    plain |= {"plain top-k, in order": contiguous_copies(sweep)}
    series += [Series(name=name, x=(copies,), y=(0.0,)) for name, copies in plain.items()]
    mark = _curve(f"chosen: {name_of(chosen.point)}", sweep, [chosen.point])
    series.append(replace(mark, lower=(), upper=(), is_marked=True))
    points = [{**point, "loss_increase": loss_increase(sweep, point)} for point in sweep["points"]]
    first = ("policy", "strength", "loss", "loss_increase", "copies")
    curve = Chart(
        slug="quality",
        title="Loss and copies of each policy",
        x_label="copies per token",
        y_label="more loss than plain top-k, %",
        series=tuple(series),
        note=f"Chosen: {name_of(chosen.point)}; {chosen.reason}.",
        table=table_of([{**baseline, "strength": None, "loss_increase": 0.0}, *points], first),
    )
    return Section(
        slug="quality",
        title="Quality against traffic",
        text="Each point is a routing policy at one strength, on held-out text without "
        "fine-tuning. Left is less traffic, down is better quality.",
        charts=(curve,),
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


def _curve(name: str, sweep: Document, points: Sequence[Document]) -> Series:
    intervals = [point.get("loss_increase_interval") for point in points]
    bounds = [interval for interval in intervals if interval is not None]
    is_known = len(bounds) == len(points)
    return Series(
        name=name,
        x=tuple(float(point["copies"]) for point in points),
        y=tuple(100 * loss_increase(sweep, point) for point in points),
        lower=tuple(100 * low for low, _ in bounds) if is_known else (),
        upper=tuple(100 * high for _, high in bounds) if is_known else (),
        labels=tuple(name_of(point) for point in points),
    )


def _is_of(point: Document, plan: Plan) -> bool:
    if "plan_fingerprint" in point:
        return bool(point["plan_fingerprint"] == plan.fingerprint)
    strengths = point.get("strength")
    if not isinstance(strengths, list):
        strengths = [strengths] * plan.num_layers
    ours = [(layer.policy, layer.strength) for layer in plan.layers]
    return ours == [(point.get("policy"), strength) for strength in strengths]
