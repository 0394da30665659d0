"""What every command has: options in groups, --config, --quiet and --force, and an example."""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from c2r.cli.console import quieted
from c2r.cli.runs import Run, read_config, running

_GROUPS = {
    "Text": (
        "text", "data", "half", "tokens", "seq_len", "batch_size", "answers", "overlong", "packing",
        "eval_data", "eval_share",
    ),
    "Cluster": (
        "cluster", "ranks", "nodes", "tokens_per_rank", "phase", "dispatcher", "chunks",
    ),
    "Policy": ("policy", "strength", "top_t", "spread", "transfer"),
    "Placement": (
        "replicas", "max_load", "keep_groups", "worst", "objective", "inter_node_cost",
    ),
    "Target": ("sweep", "max_loss_increase", "copies", "max_time"),
    "Training": (
        "mode", "preset", "control", "num_steps", "num_epochs", "batch_per_pass", "learning_rate",
        "warmup", "weight_decay", "kl_weight", "aux_weight", "anneal_steps", "lora_rank", "bf16",
        "gradient_checkpointing", "save_every", "async_save", "log_every", "wandb",
    ),
    "Tasks": ("tasks", "tasks_dir", "task_file", "trust_task_code", "limit", "shots"),
    "Comparison": ("against", "against_plan", "no_compare", "compare"),
    "Model": (
        "device", "device_map", "offload_folder", "dtype", "attn_implementation", "revision",
        "trust_remote_code", "other_weights",
    ),
    "Run": ("expert_parallel", "fsdp", "timeout", "jobs", "seed"),
    "Output": (
        "out", "plot", "figure", "figures", "save_recording", "force", "json", "quiet", "config",
        "help",
    ),
}  # fmt: skip
"""Where an option stands in the help, by its name in Python; others stand first. What a first user
gives comes before what few ever give."""
_WIDTH = 64  # of the lines of an example
_WRITTEN = ("out", "plot", "figure", "figures", "save_recording")
_TYPE = re.compile(r"<(?:list\[)?([\w,]+)(?:\]| range)?>")
_DEFAULT = re.compile(r"\[default: \((.*?)\)(?=[;\]])", re.DOTALL)

_ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="<path>",
        is_eager=True,
        callback=read_config,
        help="Take options from a file, as stands beside each result as OUT.run.yaml; those given "
        "here win.",
    ),
]
_QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print tables, JSON, warnings and errors only, and nothing of files that are written.",
    ),
]
_ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Replace a result that another command, or other options, made."),
]


class Command(TyperCommand):
    """A command whose help shows its options in groups, and each default in one way."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options, those of the command's own first."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        groups |= {name: [] for name in _GROUPS}
        home = {option: name for name, options in _GROUPS.items() for option in options}
        places = {option: place for place, option in enumerate(home)}
        for parameter in sorted(self.get_params(ctx), key=lambda it: places.get(str(it.name), -1)):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                group = "Arguments" if is_argument else home.get(str(parameter.name), "Options")
                usage = _TYPE.sub(lambda found: f"<{found[1].lower()}>", record[0])
                groups[group].append((usage, _DEFAULT.sub(r"[default: \1", record[1])))
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def add_command(
    app: typer.Typer, name: str, command: Callable[..., None], example: str, start: str = "c2r"
) -> None:
    """Adds a command with what all have.

    Args:
        app: the group that it is added to.
        name: what the user calls it.
        command: parses, calls the library, prints.
        example: what stands after its name in the example of its help.
        start: what stands before it there.
    """
    # The mark in front of the example keeps it in one line.
    words = f"{start} {name} {example}".replace(" --", "\0--").split("\0")
    epilog = "\b\nExample: " + " \\\n    ".join(_lines(words))
    app.command(name, epilog=epilog, cls=Command)(_with_common_options(command))


def _lines(words: list[str]) -> Iterator[str]:
    """Words in lines that fit a terminal of 80 columns, where they stand indented."""
    line = words[0]
    for word in words[1:]:
        if len(line) + len(word) > _WIDTH:
            yield line
            line = word
        else:
            line += f" {word}"
    yield line


def _with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(command)
    own = dict(signature.parameters)
    kind = inspect.Parameter.KEYWORD_ONLY
    common = {"quiet": (_QuietOption, False), "config": (_ConfigOption, None)}
    if any(name in own for name in _WRITTEN):
        common = {"force": (_ForceOption, False), **common}

    @wraps(command)
    def run(context: typer.Context, **arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in common}
        if "context" in own:
            arguments["context"] = context
        with quieted(given["quiet"]), running(Run.of(context, given.get("force", False))):
            command(**arguments)

    added = [
        inspect.Parameter(name, kind, default=default, annotation=annotation)
        for name, (annotation, default) in common.items()
    ]
    first = inspect.Parameter("context", kind, annotation=typer.Context)
    rest = [entry.replace(kind=kind) for name, entry in own.items() if name != "context"]
    run.__signature__ = signature.replace(parameters=[first, *rest, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {entry.name: entry.annotation for entry in (first, *rest, *added)}
    return run
