"""`c2r permute`: a checkpoint whose order of experts is a plan's placement."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.console import JsonOption, complain, note, print_json, progress_bar
from c2r.cli.models import resolve_model
from c2r.cli.runs import check_output
from c2r.cli.starting import tell_commands
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.adapters.engines import Command


def permute(
    model: Annotated[
        str,
        typer.Argument(help="Folder or hub name of safetensors weights; `tiny` is embedded."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or missing.")],
    plan: Annotated[
        Path | None,
        typer.Option(help="Plan from `c2r plan`.", show_default="the one in the folder"),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Restore the original order of a permuted folder.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Renumber a checkpoint's experts as a plan places them.

    Any engine that places experts in the order of their ids then places them as the plan says.
    The model's outputs do not change. An interrupted run resumes when it is started again.
    """
    from c2r.adapters.checkpoints import open_checkpoint
    from c2r.adapters.engines import commands_in_order
    from c2r.adapters.huggingface import (
        find_source,
        is_hub_name,
        local_folder,
        permute_checkpoint,
        undo_permutation,
    )
    from c2r.plans import Plan
    from c2r.plans.model_folder import read_plan

    if undo and plan is not None:
        raise InputError("--undo reads the permutation in the folder; leave --plan out")
    check_output(out, model, plan)
    name = resolve_model(model)
    source = local_folder(find_source(name)) if is_hub_name(name) else Path(name)
    megabytes = open_checkpoint(source).num_bytes // 1_000_000
    with progress_bar("writing, MB", megabytes) as advance:

        def written(num_bytes: int) -> None:
            advance(num_bytes // 1_000_000)

        if undo:
            report = undo_permutation(source, out, written)
        else:
            chosen = None if plan is None else Plan.load(plan)
            report = permute_checkpoint(source, chosen, out, written)
    permuted = read_plan(out)
    starts = (
        {}
        if undo or permuted is None
        else commands_in_order(str(out.absolute()), permuted.topology)
    )
    if json:
        launch = {name: [line for _, line in lines] for name, lines in starts.items()}
        print_json({"out": str(out), "is_undone": undo, **asdict(report), "launch": launch})
    if report.num_replicas:
        complain(
            f"WARNING: the plan has {report.num_replicas} replicas a rank, and a checkpoint holds "
            "each expert once: an engine that places experts in order goes without them, and "
            "without what they save. `c2r export --format sglang` keeps them"
        )
    note(
        f"wrote {out}: {report.num_layers} layers renumbered, {report.num_tensors:,} tensors"
        + "".join(f"; {stem} keeps its order" for stem in report.untouched_layers)
        + "".join(f"; {name} holds the old order and was left out" for name in report.omitted)
    )
    if starts:
        _tell_engines(starts)


def _tell_engines(starts: "dict[str, tuple[Command, ...]]") -> None:
    """How engines start with the folder, and when that saves."""
    note(
        "its experts are placed in order: give no file of `c2r export` with it, and leave vLLM's "
        "--enable-eplb off. Fewer rows are sent only where the engine sends a token once per node "
        "or rank, as these commands ask; vLLM's deepep_low_latency sends once per expert, and by "
        "default both send all tokens to all ranks: there the plan saves what evener ranks do, and "
        "no row. The plan's policy, if it has one, is in force where c2r is installed beside the "
        "engine"
    )
    for release, commands in starts.items():
        tell_commands(release, commands)
