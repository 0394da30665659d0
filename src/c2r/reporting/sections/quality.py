"""What was measured: loss against time and copies, and the point that a report speaks of."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from c2r.plans import Plan
from c2r.prediction import StepTime
from c2r.reporting.charts import Chart, Section, Series, table_of
from c2r.reporting.inputs import Inputs
from c2r.reporting.times import Setting
from c2r.results import Measurement, Strength, SweepPoint, SweepResult

ALLOWED_INCREASE = 0.003
"""Of the loss, where no plan says which point was chosen; what `c2r optimize` allows by itself."""
_LINEAR_TO = 0.25  # per cent of loss, about what the intervals of a sweep are wide

TIME = "milliseconds a step, predicted"
_COPIES = "copies per token"
_PLACED = "plain top-k, placed"

Cost = Callable[[Measurement], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenPoint:
    """What a report takes to be measured of the plan, and why this."""

    point: Measurement
    reason: str


def find_measured(inputs: Inputs, setting: Setting | None) -> ChosenPoint | None:
    """What was measured of the plan given, or without one the point of the sweep to choose."""
    measured = inputs.measurements
    if inputs.sweep is not None:
        chosen = choose_point(inputs.sweep, inputs.plan, setting)
        if inputs.plan is None or chosen.point.plan_fingerprint == inputs.plan.fingerprint:
            return chosen
    if inputs.plan is not None:
        measured = tuple(m for m in measured if m.plan_fingerprint == inputs.plan.fingerprint)
    if not measured:
        return None
    reason = "the plan given" if inputs.plan is not None else "the plan that was measured"
    return ChosenPoint(point=measured[0], reason=reason)


def choose_point(
    sweep: SweepResult, plan: Plan | None, setting: Setting | None = None
) -> ChosenPoint:
    """The point that `plan` is, or without one the cheapest at nearly the same quality."""
    if plan is not None:
        for point in (*sweep.points, sweep.baseline):
            if point.plan_fingerprint == plan.fingerprint:
                return ChosenPoint(point=point, reason="the plan given")
    near = [point for point in sweep.points if point.loss_increase <= ALLOWED_INCREASE]
    missing = "no plan is given" if plan is None else "the plan given was not measured"
    cost, unit = _cost(sweep, setting)
    if near:
        what = "the least time" if unit == TIME else "the fewest copies"
        return ChosenPoint(
            point=min(near, key=cost),
            reason=f"{missing}; this is the measured point with {what} within "
            f"+{100 * ALLOWED_INCREASE:g} % loss",
        )
    return ChosenPoint(
        point=min(sweep.points, key=lambda point: point.loss_increase),
        reason=f"{missing}; this is the measured point with the least loss",
    )


def show_quality(
    sweep: SweepResult, plan: Plan | None, setting: Setting | None, before: StepTime | None
) -> Section:
    """Loss of every policy against time, the chosen point marked."""
    chosen = choose_point(sweep, plan, setting)
    loss = quality_chart(sweep, setting, chosen=chosen, before=before)
    where = f"Predicted for {setting.name}. " if setting and loss.x_label == TIME else ""
    return Section(
        slug="quality",
        title="Quality against time" if where else "Quality against traffic",
        text=f"{where}Each point is a routing policy at one strength, measured on held-out text "
        "without fine-tuning, with the 95 % interval of its loss. Left is "
        f"{'faster' if where else 'cheaper'}, down is better. The line joins the points that no "
        "other beats in both.",
        charts=(loss,),
    )


def quality_chart(
    sweep: SweepResult,
    setting: Setting | None,
    *,
    chosen: ChosenPoint | None = None,
    before: StepTime | None = None,
) -> Chart:
    """Loss of each policy against the time of a step, or against copies where time is not known.

    Args:
        sweep: the points.
        setting: where times are predicted; None where that is not known.
        chosen: a point to mark.
        before: a step of plain top-k with the experts in order.
    """
    baseline = sweep.baseline
    cost, unit = _cost(sweep, setting)
    points = (baseline, *sweep.points)
    series = [
        *(_points(name, found, cost) for name, found in by_policy(sweep)),
        replace(_points(_PLACED, [baseline], cost), labels=(_PLACED,)),
    ]
    in_order = baseline.copies_in_order
    if unit == TIME:
        in_order = before.total if before is not None else math.nan
    if math.isfinite(in_order):
        series.append(Series(name="plain top-k, in order", x=(in_order,), y=(0.0,), look="points"))
    series.append(_frontier(points, cost))
    note = ""
    if chosen is not None:
        series.append(_mark(chosen, (cost(chosen.point),), (100 * chosen.point.loss_increase,)))
        note = f"Chosen: {name_of(chosen.point)}; {chosen.reason}."
    rows = [
        {
            **point.to_json(),
            "strength": None if point is baseline else name_strength(point.strength),
            **({"step_ms": cost(point)} if unit == TIME else {}),
        }
        for point in points
    ]
    first = ("policy", "strength", "loss", "loss_increase", "copies")
    return Chart(
        slug="quality",
        title=f"Loss and {'time' if unit == TIME else 'copies'} of each policy",
        x_label=unit,
        y_label="more loss than plain top-k, %",
        series=tuple(series),
        table=table_of(rows, (*first, "step_ms") if unit == TIME else first),
        linear_to=_LINEAR_TO,
        note=note,
    )


def _cost(sweep: SweepResult, setting: Setting | None) -> tuple[Cost, str]:
    """What a point costs, and the unit: time where it is known of all points, else copies."""
    if setting is not None:
        times = {id(point): setting.time_of(point) for point in (sweep.baseline, *sweep.points)}
        known = {key: step.total for key, step in times.items() if step is not None}
        if len(known) == len(times):
            return lambda point: known[id(point)], TIME
    return lambda point: point.copies, _COPIES


def by_policy(sweep: SweepResult) -> Iterator[tuple[str, list[Measurement]]]:
    """The points of each policy by copies; strengths spread over layers are one of their own."""
    lines: dict[str, list[Measurement]] = {}
    for point in sorted(sweep.points, key=lambda point: point.copies):
        setting = SweepPoint(policy=point.policy, strength=point.strength)
        name = f"{point.policy}, spread" if setting in sweep.spread else point.policy
        lines.setdefault(name, []).append(point)
    yield from lines.items()


def _points(name: str, points: Sequence[Measurement], cost: Cost) -> Series:
    intervals = [point.loss_increase_interval for point in points]
    return Series(
        name=name,
        x=tuple(map(cost, points)),
        y=tuple(100 * point.loss_increase for point in points),
        lower=tuple(100 * low for low, _ in intervals),
        upper=tuple(100 * high for _, high in intervals),
        labels=tuple(name_of(point) for point in points),
        look="points",
    )


def _frontier(points: Sequence[Measurement], cost: Cost) -> Series:
    """The points that no other is better than in both, from the cheapest to the best."""
    best: list[Measurement] = []
    for point in sorted(points, key=lambda point: (cost(point), point.loss_increase)):
        if not best or point.loss_increase < best[-1].loss_increase:
            best.append(point)
    return Series(
        name="frontier",
        x=tuple(map(cost, best)),
        y=tuple(100 * point.loss_increase for point in best),
        labels=tuple(map(name_of, best)),
    )


def _mark(chosen: ChosenPoint, x: tuple[float, ...], y: tuple[float, ...]) -> Series:
    return Series(
        name=f"chosen: {name_of(chosen.point)}",
        x=x,
        y=y,
        labels=(name_of(chosen.point),),
        look="rings",
    )


def name_of(point: Measurement) -> str:
    """Policy and strength in a few letters: `c2r 8`."""
    if point.policy == "top_k":
        return "plain top-k"
    return f"{point.policy} {name_strength(point.strength)}"


def name_strength(strength: Strength) -> str:
    """One number, or the range of several."""
    values = strength if isinstance(strength, tuple) else (strength,)
    return " to ".join(f"{value:g}" for value in dict.fromkeys((min(values), max(values))))
