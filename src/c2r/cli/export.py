"""`c2r export`: a plan as a file that an engine loads."""

from pathlib import Path
from typing import Annotated

import typer

from c2r.adapters.formats import ExportFormat
from c2r.cli.console import JsonOption, note, print_json
from c2r.cli.models import resolve_model
from c2r.cli.runs import check_output


def export(
    plan: Annotated[Path, typer.Option(help="Plan from `c2r plan`.")],
    format_: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            metavar="<format>",
            help="sglang and vllm-ascend: JSON. vllm: JSON that no released vLLM loads yet; use "
            "`c2r permute`. trtllm: YAML. megatron: flags, for a checkpoint from `c2r permute`.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Model of the plan; needed for SGLang if dense layers follow the last MoE."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a plan's placement in an engine's format.

    Prints how to start the engine with it. An engine that cannot load a placement takes a permuted
    checkpoint: `c2r permute`.
    """
    from c2r.adapters.engines import export_plan
    from c2r.plans import Plan

    check_output(out, plan, model)
    num_layers = None
    if model is not None:
        from c2r.adapters.huggingface import read_model_layers

        num_layers = read_model_layers(resolve_model(model)).num_layers
    written = export_plan(Plan.load(plan), format_, out, num_layers)
    if json:
        print_json({"out": str(out), "launch": written.launch_line, "note": written.note})
    note(f"wrote {out}\n{written.note}\n{written.launch_line}")
