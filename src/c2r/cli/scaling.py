"""What `c2r estimate --scale` shows: the step on 8 to 2,048 ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from c2r.cli.console import print_table, print_text

if TYPE_CHECKING:
    from c2r.planning.scaling import ScalePoint

_NAMES = {
    "once": "once per rank",
    "hierarchical": "once per node, then per rank",
    "placed": "placed",
    "replicas": "replicas",
    "policy": "policy",
}


def show_scale(points: "Sequence[ScalePoint]", title: str) -> None:
    """A row for each number of ranks."""
    known = [name for name in _NAMES if any(name in point.steps for point in points)]
    rows = [
        [
            f"{point.num_ranks:,}",
            f"{point.group_ranks:,} on {point.group_nodes}",
            f"{point.steps['k_fold'].total:.3f}",
            f"{100 * point.steps['k_fold'].exchange_share:.0f} %",
            *(_percent(point, name) for name in known),
            f"{_best(point):.3f}",
        ]
        for point in points
    ]
    columns = ["ranks", "group, nodes", "once per expert, ms", "exchange of it"]
    columns += [*(_NAMES[name] for name in known), "best, ms"]
    print_table(title, columns, rows)
    print_text(
        "group: ranks that share the experts; further ranks are groups for other tokens. once per "
        "expert: a step with experts in order. Then what each saves of that step on top of the "
        "best before; below zero it is slower. Placed on 2,048 tokens or half of them, told of the "
        "others."
    )


def _percent(point: "ScalePoint", name: str) -> str:
    return f"{100 * point.saved[name]:+.1f} %" if name in point.saved else ""


def _best(point: "ScalePoint") -> float:
    return min(step.total for step in point.steps.values())


def draw_scale(points: "Sequence[ScalePoint]", title: str, path: Path) -> None:
    """The shares as lines over ranks; SVG or PNG by the name. Raises as `write_chart`."""
    from c2r.reporting import Chart, Series, write_chart

    sizes = tuple(str(point.num_ranks) for point in points)
    lines = [
        Series(
            name="exchange, once per expert",
            x=sizes,
            y=tuple(100 * point.steps["k_fold"].exchange_share for point in points),
        )
    ]
    for name, label in _NAMES.items():
        known = [point for point in points if name in point.saved]
        if known:
            lines.append(
                Series(
                    name=f"saved: {label}",
                    x=tuple(str(point.num_ranks) for point in known),
                    y=tuple(100 * point.saved[name] for point in known),
                )
            )
    chart = Chart(
        slug="scale",
        title=title,
        x_label="ranks",
        y_label="% of the step, once per expert",
        series=tuple(lines),
    )
    write_chart(chart, path)
