"""The measured curve of quality against traffic, and the point of it that a report speaks of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from c2r.plans import Plan
from c2r.reporting.charts import Chart, Section, Series, table_of
from c2r.results import Measurement, Strength, SweepPoint, SweepResult

_ALLOWED_INCREASE = 0.003  # of the loss, where no plan says which point was chosen
_LINEAR_TO = 0.25  # per cent of loss, about what the intervals of a sweep are wide


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenPoint:
    """A point of a sweep, and why this one."""

    point: Measurement
    reason: str


def choose_point(sweep: SweepResult, plan: Plan | None) -> ChosenPoint:
    """The point that `plan` is, or without one the cheapest at nearly the same quality."""
    if plan is not None:
        for point in (*sweep.points, sweep.baseline):
            if point.plan_fingerprint == plan.fingerprint:
                return ChosenPoint(point=point, reason="the plan given")
    near = [point for point in sweep.points if point.loss_increase <= _ALLOWED_INCREASE]
    missing = "no plan is given" if plan is None else "the plan given was not measured"
    if near:
        return ChosenPoint(
            point=min(near, key=lambda point: point.copies),
            reason=f"{missing}; this is the measured point with the fewest copies within "
            f"+{100 * _ALLOWED_INCREASE:g} % loss",
        )
    return ChosenPoint(
        point=min(sweep.points, key=lambda point: point.loss_increase),
        reason=f"{missing}; this is the measured point with the least loss",
    )


def show_quality(sweep: SweepResult, plan: Plan | None) -> Section:
    """Loss against copies of every policy that was measured, the chosen point marked."""
    chosen = choose_point(sweep, plan)
    curve = quality_chart(sweep)
    mark = _curve(f"chosen: {name_of(chosen.point)}", [chosen.point])
    curve = replace(
        curve,
        series=(*curve.series, replace(mark, lower=(), upper=(), is_marked=True)),
        note=f"Chosen: {name_of(chosen.point)}; {chosen.reason}.",
    )
    return Section(
        slug="quality",
        title="Quality against traffic",
        text="Each point is a routing policy at one strength, on held-out text without "
        "fine-tuning. Left is less traffic, down is better quality.",
        charts=(curve,),
    )


def quality_chart(sweep: SweepResult) -> Chart:
    """A line for each policy, with 95 % intervals of the loss; plain top-k in two placements."""
    baseline = sweep.baseline
    lines: dict[str, list[Measurement]] = {}
    for point in sorted(sweep.points, key=lambda point: point.copies):
        setting = SweepPoint(policy=point.policy, strength=point.strength)
        name = f"{point.policy}, spread" if setting in sweep.spread else point.policy
        lines.setdefault(name, []).append(point)
    plain = {
        "plain top-k, placed": baseline.copies,
        "plain top-k, in order": baseline.copies_contiguous,
    }
    rows = [{**baseline.to_json(), "strength": None}, *(point.to_json() for point in sweep.points)]
    return Chart(
        slug="quality",
        title="Loss and copies of each policy",
        x_label="copies per token",
        y_label="more loss than plain top-k, %",
        series=(
            *(_curve(name, points) for name, points in lines.items()),
            *(Series(name=name, x=(copies,), y=(0.0,)) for name, copies in plain.items()),
        ),
        table=table_of(rows, ("policy", "strength", "loss", "loss_increase", "copies")),
        linear_to=_LINEAR_TO,
    )


def name_of(point: Measurement) -> str:
    """Policy and strength in a few letters: `c2r 8`."""
    name = "plain top-k" if point.policy == "top_k" else point.policy
    return f"{name} {name_strength(point.strength)}" if point.policy != "top_k" else name


def name_strength(strength: Strength) -> str:
    """One number, or the range of several."""
    values = strength if isinstance(strength, tuple) else (strength,)
    return " to ".join(f"{value:g}" for value in dict.fromkeys((min(values), max(values))))


def _curve(name: str, points: Sequence[Measurement]) -> Series:
    intervals = [point.loss_increase_interval for point in points]
    return Series(
        name=name,
        x=tuple(point.copies for point in points),
        y=tuple(100 * point.loss_increase for point in points),
        lower=tuple(100 * low for low, _ in intervals),
        upper=tuple(100 * high for _, high in intervals),
        labels=tuple(name_of(point) for point in points),
    )
