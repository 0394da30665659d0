"""The section of a report that shows answers to standard tasks."""

from c2r.reporting.charts import Chart, Section, Series, Table
from c2r.reporting.task_report import ALL, TaskReport


def show_tasks(index: int, report: TaskReport) -> Section:
    """Accuracy of each task, and where there is a reference the difference with its interval."""
    slug = f"tasks-{index}"
    policies = report.provenance.get("policies")
    under = f" under {', '.join(map(str, policies))}" if isinstance(policies, list) else ""
    chart = _differences(slug, report) if report.is_compared else _accuracies(slug, report)
    text = f"Accuracy{under}."
    if report.is_compared:
        text += (
            " Differences to the reference, item by item, with 95 % intervals. A difference is "
            "shown where the interval is clear of 0 and McNemar's p is at most 0.05."
        )
    return Section(slug=slug, title="Tasks", text=text, charts=(chart,))


def _differences(slug: str, report: TaskReport) -> Chart:
    lines = report.lines
    rows = tuple(
        (
            name_of(line.name),
            line.num_items,
            100 * line.accuracy,
            None if line.reference_accuracy is None else 100 * line.reference_accuracy,
            100 * line.difference,
            100 * line.interval[0],
            100 * line.interval[1],
            ("better" if line.difference > 0 else "worse") if line.is_shown else "not shown",
        )
        for line in lines
    )
    columns = ("task", "items", "right, %", "reference, %", "points", "lower", "upper", "verdict")
    return Chart(
        slug=slug,
        title="Accuracy against the reference",
        x_label="task",
        y_label="percentage points more than the reference",
        series=(
            Series(
                name="difference, with the 95 % interval",
                x=tuple(name_of(line.name) for line in lines),
                y=tuple(100 * line.difference for line in lines),
                lower=tuple(100 * line.interval[0] for line in lines),
                upper=tuple(100 * line.interval[1] for line in lines),
            ),
        ),
        style="bars",
        table=Table(columns=columns, rows=rows),
    )


def _accuracies(slug: str, report: TaskReport) -> Chart:
    names = tuple(line.name for line in report.lines)
    values = tuple(100 * line.accuracy for line in report.lines)
    return Chart(
        slug=slug,
        title="Accuracy of each task",
        x_label="task",
        y_label="right, %",
        series=(Series(name="right", x=names, y=values),),
        style="bars",
    )


def name_of(name: str) -> str:
    """What a reader calls the line."""
    return "mean of tasks" if name == ALL else name
