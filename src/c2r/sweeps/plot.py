"""Draws the curve of a sweep: loss against copies per token."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from c2r.artifacts import atomic_path
from c2r.errors import InputError


def check_matplotlib() -> None:
    """Raises `InputError` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InputError("drawing needs matplotlib; install it with `pip install c2r-moe[plot]`")


def plot_curve(document: dict[str, Any], path: Path) -> None:
    """Writes a PNG: a line for each policy, bars for the 95 % intervals of the loss.

    Args:
        document: what `read_sweep` gives.
        path: the file to write.

    Raises:
        InputError: the file cannot be written.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    baseline = document["baseline"]
    axes.plot(baseline["copies"], 0, "k*", markersize=11, label="plain top-k, placed")
    axes.plot(baseline["copies_contiguous"], 0, "k|", markersize=13, label="plain top-k, in order")
    for label, points in _lines(document["points"]).items():
        increases = [100 * point["loss_increase"] for point in points]
        halves = [50 * (high - low) for low, high in (p["loss_increase_interval"] for p in points)]
        copies = [point["copies"] for point in points]
        axes.errorbar(copies, increases, yerr=halves, marker="o", markersize=3.5, label=label)
    axes.set_yscale("symlog", linthresh=0.25)
    ticks = [0, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.set(xlabel="copies per token", ylabel="more loss than plain top-k")
    request = document["request"]
    axes.set_title(f"{Path(request['model']).name} on {request['num_ranks']} ranks")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _lines(points: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Points by the name of their line, in the order of their copies."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for point in sorted(points, key=lambda point: point["copies"]):
        is_spread = isinstance(point["strength"], list) and point["policy"] != "c2r"
        label = f"{point['policy']}, spread" if is_spread else point["policy"]
        lines.setdefault(label, []).append(point)
    return lines
