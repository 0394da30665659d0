"""`c2r report`: profiles, plans and what was measured of them as one page."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.console import JsonOption, note, print_json
from c2r.cli.runs import check_output
from c2r.errors import InputError, without_controls

if TYPE_CHECKING:
    from c2r.reporting import Report


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Profile, plan, JSON of `c2r sweep`, `c2r measure`, `c2r evaluate` or `c2r "
            "bench`, trainer_state.json; in any order."
        ),
    ],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for the same figures as PNG and SVG.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Where times are predicted: h100-8x2 and so on (`c2r clusters` lists them), or a "
            "YAML file.",
            show_default="that of the plan or the sweep, else H100s",
        ),
    ] = None,
    tokens_per_rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of each rank in a step.",
            show_default="those of the plan or the sweep, else 4096; of decode 128",
        ),
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(
            help="training, prefill or decode.",
            show_default="that of the plan or the sweep, else prefill",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show on one page whether a plan pays.

    The page is a single file that works offline. First comes the verdict: the time of a step before
    and after, what it costs in quality, how even the work is, and what to do next; then figures,
    each with its table.
    """
    from c2r.prediction import Phase, find_cluster
    from c2r.reporting import build_report, read_inputs, write_figures, write_page

    check_output(out, cluster, *files)
    check_output(figures, fills=True)
    if phase is not None and phase not in list(Phase):
        raise InputError(f"--phase {phase} is unknown; choose {', '.join(Phase)}")
    inputs = read_inputs(files)
    made = build_report(
        inputs,
        cluster=None if cluster is None else find_cluster(cluster),
        tokens_per_rank=tokens_per_rank,
        phase=None if phase is None else Phase(phase),
    )
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
                "verdict": made.verdict.to_json(),
                "answers": [asdict(answer) for answer in made.answers],
                "figures": [str(path) for path in drawn],
            }
        )
        return
    _show(made)
    note(f"wrote {out}" + (f" and {len(drawn)} figures to {figures}" if drawn else ""))


def _show(made: "Report") -> None:
    verdict = made.verdict
    lines = [f"{verdict.word.upper()}: {verdict.headline}", f"  {verdict.reason}"]
    lines += [f"  {line}" for line in (*verdict.remarks, verdict.basis) if line]
    for answer in made.answers:
        lines += [answer.question, f"  {answer.number} {answer.unit}", f"  {answer.text}"]
    lines += [f"Next: {verdict.todo}", f"  {verdict.command}"]
    for line in lines:
        print(without_controls(line))
