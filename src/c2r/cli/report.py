"""`c2r report`: profiles, plans, sweeps and benchmarks as one page."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from c2r.cli.console import JsonOption, check_output, note, print_json


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Profile, plan, JSON of `c2r sweep` or `c2r bench`, trainer_state.json; in any "
            "order."
        ),
    ],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for the same figures as PNG and SVG.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what was measured of a model on one page.

    The page is a single file that works offline. It answers how collaborative the model is, what
    its traffic costs, and what the plan saves at what quality; then come figures, each with its
    table.
    """
    from c2r.reporting import build_report, read_inputs, write_figures, write_page

    check_output(out, *files)
    inputs = read_inputs(files)
    made = build_report(inputs)
    write_page(made, out)
    drawn = () if figures is None else write_figures(made, figures)
    if json:
        print_json(
            {
                "out": str(out),
                "bytes": out.stat().st_size,
                "sources": [
                    {"file": str(source.path), "kind": source.kind} for source in inputs.sources
                ],
                "answers": [asdict(answer) for answer in made.answers],
                "figures": [str(path) for path in drawn],
            }
        )
        return
    for answer in made.answers:
        print(f"{answer.question}\n  {answer.number} {answer.unit}\n  {answer.text}")
    note(f"wrote {out}" + (f" and {len(drawn)} figures to {figures}" if drawn else ""))
