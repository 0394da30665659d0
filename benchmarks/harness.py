"""What all benchmarks do alike: interleaved rounds, spreads, a table, and one line of JSON.

That line is the last of stdout. It has the same keys everywhere: benchmark, baseline, rows,
settings, versions, machine and commit, beside those of the program. A spread is
`{"median", "lower", "upper"}`, with the quartiles that `c2r.timing.Spread` defines. c2r is imported
where it is used only: some programs measure the memory of their process.
"""

import os
import platform
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("c2r-moe", "numpy", "torch", "transformers", "mtkahypar", "triton")
PEERS = ("torchtitan", "megablocks", "scattermoe")


def seconds_of(run, clock=time.perf_counter):
    """What one call takes on `clock`."""
    started = clock()
    run()
    return clock() - started


def interleave(sides, num_rounds, measure=seconds_of, num_warm_ups=0):
    """The figure that `measure` has of each side in each round; every round measures all sides.

    Args:
        sides: by name, what `measure` is given.
        num_rounds: rounds whose figures count.
        measure: seconds on the wall's clock unless told otherwise.
        num_warm_ups: rounds before them, whose figures do not.
    """
    figures = {name: [] for name in sides}
    for index in range(num_warm_ups + num_rounds):
        for name, side in sides.items():
            figure = measure(side)
            if index >= num_warm_ups:
                figures[name].append(figure)
    return figures


def spread(figures):
    """The median of figures, and the quartiles around it."""
    from c2r.timing import Spread

    return asdict(Spread.of(figures))


def ratios(figures, baseline):
    """The spread of the ratios of a round, which cancel what slows a whole round down."""
    from c2r.timing import spread_of_ratios

    return asdict(spread_of_ratios(figures, baseline))


def compare(figures, baseline, side="side", unit="seconds"):
    """A row for each side: the spread of its figures, and of their ratios to the baseline's."""
    return [
        {side: name, unit: spread(ours), "ratio": ratios(ours, figures[baseline])}
        for name, ours in figures.items()
    ]


def print_table(rows, columns=None):
    """A table of rows, or of some of their columns."""
    columns = tuple(columns or rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value):
    if isinstance(value, dict):
        return "{median:.4g} ({lower:.4g}-{upper:.4g})".format(**value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def children(pid):
    """Of a process, those that it started; none where it has ended."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def seconds_used(pid):
    """Processor seconds of a process, without those of its children; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finish(benchmark, baseline, rows, settings, **others):
    """Prints the line of JSON.

    Args:
        benchmark: name of the program.
        baseline: what the rows are compared with.
        rows: the figures.
        settings: by name; of paths only the last part.
        others: further keys of the document.
    """
    from c2r.cli.console import print_json

    plain = {
        key: value.name if isinstance(value, Path) else value for key, value in settings.items()
    }
    print_json(
        {"benchmark": benchmark, "baseline": baseline, "rows": rows, **others}
        | {"settings": plain, "versions": versions(), "machine": machine(), "commit": commit()}
    )


def versions():
    """Of Python, and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *PEERS):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine():
    """Processor, number of cores, and memory."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gigabytes": round(pages / 1e9, 1),
    }


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit():
    """Of this checkout, `-dirty` where files differ from it; None outside of git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None
