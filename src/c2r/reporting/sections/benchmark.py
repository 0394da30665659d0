"""The sections of a report that show benchmarks and trainings."""

import math
from collections.abc import Iterator, Sequence

from c2r.reporting.charts import Chart, Section, Series, table_of
from c2r.reporting.inputs import COPIES, LOSSES, Document


def show_benchmark(index: int, document: Document) -> Section:
    """Seconds of each case with their quartiles."""
    cases = [(_case_name(case), case["seconds"]) for case in document["cases"]]
    bars = Series(
        name="median, with quartiles",
        x=tuple(name for name, _ in cases),
        y=tuple(1000 * seconds["median"] for _, seconds in cases),
        lower=tuple(1000 * seconds["lower"] for _, seconds in cases),
        upper=tuple(1000 * seconds["upper"] for _, seconds in cases),
    )
    rows = [_flat_case(case) for case in document["cases"]]
    chart = Chart(
        slug=f"benchmark-{index}",
        title="Time of each case",
        x_label="case",
        y_label="milliseconds",
        series=(bars,),
        style="bars",
        table=table_of(rows, ("name",)),
    )
    return Section(
        slug=f"benchmark-{index}",
        title=f"Benchmark: {str(document['benchmark']).replace('_', ' ')}",
        text=" ".join(_describe(document)),
        charts=(chart,),
    )


def show_training(index: int, document: Document) -> Section:
    """Losses over steps as a Trainer logs them, and the copies that `c2r finetune` adds."""
    slug, log = f"training-{index}", document["log_history"]
    losses = Chart(
        slug=slug,
        title="Loss in training",
        x_label="step",
        y_label="loss",
        series=tuple(_logged(log, LOSSES)),
        table=table_of(log, ("step",)),
    )
    copies = Chart(
        slug=f"{slug}-copies",
        title="Copies per token in training",
        x_label="step",
        y_label="copies per token",
        series=tuple(_logged(log, (COPIES,))),
    )
    charts = (losses, copies) if copies.series else (losses,)
    return Section(slug=slug, title="Training", text="", charts=charts)


def _logged(log: Sequence[Document], names: Sequence[str]) -> Iterator[Series]:
    """A line for each name; where a NaN was logged, None as it was read, the line has a gap."""
    for name in names:
        logged = [entry for entry in log if name in entry]
        if any(entry[name] is not None for entry in logged):
            values = (math.nan if entry[name] is None else entry[name] for entry in logged)
            steps = tuple(entry["step"] for entry in logged)
            yield Series(name=name.replace("_", " "), x=steps, y=tuple(values))


def _describe(document: Document) -> Iterator[str]:
    yield "Less is better."
    if document.get("baseline"):
        yield f"Ratios in the table are to {document['baseline']}."
    known = [document.get(key) for key in ("topology", "settings")]
    settings = [pair for part in known if isinstance(part, dict) for pair in part.items()]
    if settings:
        named = (f"{key.replace('_', ' ')} {value}" for key, value in settings if value is not None)
        yield f"Measured with {', '.join(named)}."


def _case_name(case: Document) -> str:
    inner = case.get("case")
    return str(inner.get("name") if isinstance(inner, dict) else case.get("name", inner))


def _flat_case(case: Document) -> Document:
    return {"name": _case_name(case)} | {
        f"{outer}: {key}" if isinstance(value, dict) else outer: item
        for outer, value in case.items()
        if outer != "case"
        for key, item in (value.items() if isinstance(value, dict) else [("", value)])
    }
