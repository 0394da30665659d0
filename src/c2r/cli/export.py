"""`c2r export`: a plan as a file that an engine loads."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.adapters.formats import ExportFormat
from c2r.cli.console import JsonOption, note, print_json
from c2r.cli.models import resolve_model
from c2r.cli.runs import check_output
from c2r.cli.starting import tell_commands, whole_path

if TYPE_CHECKING:
    from c2r.adapters.engines import Export
    from c2r.plans import Plan

_RENUMBERED = "renumbered"


def export(
    plan: Annotated[Path, typer.Option(help="Plan from `c2r plan`.")],
    format_: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            metavar="<format>",
            help="sglang and vllm-ascend: JSON. trtllm: YAML. megatron: flags, for a checkpoint "
            "from `c2r permute`. vllm: JSON that no released vLLM loads; use `c2r permute`.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Model of the plan; needed for SGLang if dense layers follow the last MoE.",
            show_default="the one that was profiled, in commands only",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a plan's placement in an engine's format.

    Prints the commands that start the engine with it, one for each node, and the release that
    takes them. The file numbers experts as the model does: it is not for a folder that `c2r
    permute` made of it. An engine that cannot load a placement takes such a folder instead.
    """
    from c2r.adapters.engines import export_plan, loads_placement
    from c2r.plans import Plan
    from c2r.plans.model_folder import check_numbering, is_renumbered

    check_output(out, plan, model)
    num_layers, made = None, Plan.load(plan)
    if model is not None:
        from c2r.adapters.huggingface import read_model_layers

        num_layers = read_model_layers(resolve_model(model)).num_layers
    name = model or _model_of(plan, made)
    folder = Path(resolve_model(name))
    if folder.is_dir():
        check_numbering(made, folder)
    start_with, permute = whole_path(resolve_model(name)), None
    if not loads_placement(format_) and not is_renumbered(folder):
        start_with = str(Path(_RENUMBERED).absolute())
        permute = (
            f"c2r permute {shlex.quote(name)} --plan {shlex.quote(str(plan))} --out {_RENUMBERED}"
        )
    written = export_plan(made, format_, out, num_layers, start_with)
    if json:
        print_json(
            {
                "out": str(out),
                "model": name,
                "release": written.release,
                "loads_placement": written.loads_placement,
                "permute": permute,
                "launch": [command.line for command in written.commands],
                "note": written.note,
            }
        )
    _tell(written, out, name, permute)


def _model_of(path: Path, plan: "Plan") -> str:
    """What the user calls the model of a plan: the folder that it is in, or what was profiled."""
    from c2r.plans.model_folder import plan_path
    from c2r.reporting.next_steps import model_in

    folder = path.absolute().parent.parent
    if plan_path(folder) == path.absolute() and (folder / "config.json").is_file():
        return str(path.parent.parent)
    return model_in(plan.provenance)


def _tell(written: "Export", out: Path, name: str, permute: str | None) -> None:
    if written.loads_placement:
        note(
            f"wrote {out}, for {name} with its experts as they are numbered there, and not for a "
            "folder that `c2r permute` made of it"
        )
    else:
        note(f"wrote {out}")
    note(written.note)
    if permute is not None:
        note(f"next: renumber the experts: {permute}")
    tell_commands(written.release, written.commands)
