"""`c2r finetune`: a model adapted to its constraint."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table, progress_bar
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import (
    ModelArgument,
    check_all_data,
    load_model_and_tokenizer,
    load_spread,
    note_unused,
)
from c2r.cli.processes import is_first_process, num_processes
from c2r.cli.ranks import DEFAULT_TIMEOUT, Ranks, TimeoutOption, together
from c2r.cli.runs import check_output, is_forced
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import Plan
    from c2r.training import FinetuneSettings
    from c2r.training.data import Window

    Windows = Sequence[Window]

Document = dict[str, Any]


@runs_model(dtype="float32")
def finetune(
    model: ModelArgument,
    plan: Annotated[Path, typer.Option(help="Plan from `c2r plan`.")],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Conversations (.jsonl, .parquet, a data set's folder or hub name) or plain text "
            "(.txt); repeat for several."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the tuned model; it appears when it is whole.")
    ],
    mode: Annotated[
        str | None,
        typer.Option(
            help="full, router (routers only) or lora (adapters and routers).", show_default="full"
        ),
    ] = None,
    freeze_routers: Annotated[
        bool, typer.Option("--freeze-routers", help="Train no router, in mode full or lora.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            help="paper-qwen or paper-llama: the paper's settings, for options not given."
        ),
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Train without the constraint: the baseline to compare with.")
    ] = False,
    num_steps: Annotated[
        int | None, typer.Option("--steps", help="Optimizer steps, in place of epochs.")
    ] = None,
    num_epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the data.", show_default="1")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per step, over all processes.", show_default="16")
    ] = None,
    batch_per_pass: Annotated[
        int,
        typer.Option(min=1, help="Most windows per forward pass of a process; passes add up."),
    ] = 4,
    learning_rate: Annotated[
        float | None, typer.Option(help="Its peak.", show_default="2e-5")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps to reach it.", show_default="0")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="0")] = None,
    kl_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the KL from the unconstrained model.", show_default="0"),
    ] = None,
    aux_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the balance loss.", show_default="the model's, if it has one"),
    ] = None,
    anneal_steps: Annotated[
        int | None,
        typer.Option(help="First steps, in which the policy tightens.", show_default="0"),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Rank of the adapters.", show_default="16")
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens per window.")] = 2048,
    overlong: Annotated[
        str, typer.Option(help="What becomes of longer conversations: truncate or drop.")
    ] = "truncate",
    answers: Annotated[
        str, typer.Option(help="Which answers of a conversation are learnt: all, or the last.")
    ] = "all",
    packing: Annotated[bool, typer.Option(help="Several pieces of text in one window.")] = True,
    eval_data: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out data, as --data.", show_default="a share of --data"),
    ] = None,
    eval_share: Annotated[float, typer.Option(help="Share of the windows to hold out.")] = 0.02,
    bf16: Annotated[
        bool | None,
        typer.Option(help="Compute in bfloat16, weights in --dtype.", show_default="no-bf16"),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Recompute layers in backward, to use less memory.")
    ] = False,
    expert_parallel: Annotated[
        bool, typer.Option(help="Spread the experts over the processes of torchrun.")
    ] = False,
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp",
            help="With --expert-parallel, shard all else over them, experts over groups (FSDP2).",
        ),
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    async_save: Annotated[
        bool,
        typer.Option("--async-save", help="Write them beside the training, from a copy in memory."),
    ] = False,
    log_every: Annotated[int, typer.Option(help="Steps between entries of the log.")] = 10,
    wandb: Annotated[
        bool, typer.Option(help="Report to W&B too; TensorBoard files are written if installed.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the order of the data.")] = 0,
    loading: ModelOptions = DEFAULT_LOADING,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Fine-tune a model under the routing of its plan.

    The routing is constrained in training as it will be in inference. Answers of conversations
    carry loss, questions do not; all of a .txt does. Run it again after an interruption, and it
    resumes from the last checkpoint in OUT.partial to the same weights; once OUT is there, it only
    measures. On several processes:
    `torchrun --nproc-per-node P -m c2r finetune ...`; the results are those of one. The tuned model
    is loaded with `c2r.from_pretrained(OUT)`.
    """
    arguments = dict(locals())  # options that are settings have the settings' names
    with together(timeout, loading.backend) as ranks:
        document = _finetune(arguments, ranks)
    if is_first_process():
        _report(document, json)


def _finetune(arguments: Document, ranks: Ranks) -> Document:
    from c2r.plans import Plan
    from c2r.training import (
        DataSettings,
        TrainingData,
        describe_windows,
        is_finished,
        read_windows,
        work_folder,
    )

    settings, out, chosen = _settings(arguments), arguments["out"], Plan.load(arguments["plan"])
    if is_first_process():
        inputs = (arguments["model"], arguments["plan"], *arguments["data"])
        check_output(out, *inputs, keeps=is_finished(out))
        if is_forced():
            shutil.rmtree(work_folder(out), ignore_errors=True)
    check_all_data(*arguments["data"], *(arguments["eval_data"] or ()))
    names = ("seq_len", "overlong", "answers", "packing", "seed")
    cutting = {name: arguments[name] for name in names}
    facts = {"the plan": chosen.fingerprint, "dtype": arguments["loading"].dtype}
    ranks.agree({**asdict(settings), **cutting, **facts})
    loaded, tokenizer = _load(arguments, chosen, settings)
    windows = DataSettings(**cutting)

    def read(paths: list[Path]) -> TrainingData:
        return read_windows(paths, tokenizer, windows)

    found = read(arguments["data"])
    _note(
        f"{found.num_pieces} pieces in {len(found.windows)} windows of up to {windows.seq_len} "
        f"tokens; {found.num_overlong} longer ({windows.overlong}), {found.num_skipped} with "
        "nothing to learn"
    )
    note_unused(found.unused_fields)
    own = read(arguments["eval_data"]).windows if arguments["eval_data"] else None
    training, held_out = _split(found.windows, own, arguments["eval_share"])
    digests = {"the data": describe_windows(training), "held-out data": describe_windows(held_out)}
    ranks.agree(digests)
    return _tune((loaded, tokenizer), training, held_out, chosen, settings, out)


def _settings(arguments: Document) -> "FinetuneSettings":
    """What the options say; those left out, None, leave it to the preset and the defaults."""
    from c2r.training import FinetuneSettings

    names = {field.name for field in fields(FinetuneSettings)}
    given = {name: value for name, value in arguments.items() if name in names}
    has_tensorboard = find_spec("tensorboard") is not None
    given["report_to"] = ("tensorboard",) * has_tensorboard + ("wandb",) * arguments["wandb"]
    settings = FinetuneSettings.choose(arguments["preset"], given)
    return settings.with_passes_of(arguments["batch_per_pass"], num_processes())


def _note(message: str) -> None:
    if is_first_process():
        note(message)


def _load(arguments: Document, plan: "Plan", settings: "FinetuneSettings") -> tuple[Any, Any]:
    from c2r.adapters.huggingface import ParallelOptions, remove

    if settings.expert_parallel and num_processes() == 1:
        raise InputError(
            "--expert-parallel needs several processes; start it by `torchrun --nproc-per-node "
            f"{plan.topology.num_ranks} -m c2r finetune ...`"
        )
    model, loading = arguments["model"], arguments["loading"]
    if settings.expert_parallel:
        options = ParallelOptions(timeout=arguments["timeout"])
        if num_processes() < plan.topology.num_ranks:
            _note(f"{plan.topology.num_ranks} ranks of the plan share {num_processes()} processes")
        placing = plan.folded(num_processes())
        loaded, tokenizer = load_spread(model, loading, placing, options, settings.fsdp)
    else:
        loaded, tokenizer = load_model_and_tokenizer(model, loading)
    remove(loaded)  # a folder may carry a plan
    return loaded, tokenizer


def _split(found: "Windows", held_out: "Windows | None", share: float) -> "tuple[Windows, Windows]":
    from c2r.training import split_windows

    return split_windows(found, share) if held_out is None else (found, held_out)


def _tune(
    loaded: tuple[Any, Any],
    training: "Windows",
    held_out: "Windows",
    plan: "Plan",
    settings: "FinetuneSettings",
    out: Path,
) -> Document:
    """Trains, and measures the held-out windows before and after."""
    from c2r.measuring import unconstrained
    from c2r.training import Progress, measure_held_out
    from c2r.training import finetune as tune

    model, tokenizer = loaded
    free = unconstrained(plan)
    rows = {
        "before, plain top-k": measure_held_out(model, held_out, free),
        "before, under the plan": measure_held_out(model, held_out, plan),
    }
    with progress_bar("training", settings.steps(len(training))) as advance:
        try:
            progress = [Progress(advance, _note)]
            result = tune(model, training, plan, settings, out, progress, tokenizer)
        except KeyboardInterrupt:
            _note(f"the work is in {out}.partial; the same command resumes from it")
            raise
    after = "after, plain top-k" if settings.control else "after, under the plan"
    rows[after] = measure_held_out(model, held_out, free if settings.control else plan)
    return {
        "out": str(out),
        "settings": asdict(settings),
        "num_steps": result.num_steps,
        "was_finished": result.was_finished,
        "num_trainable": result.num_trainable,
        "seconds": result.seconds,
        "num_windows": len(training),
        "held_out": {name: asdict(figures) for name, figures in rows.items()},
        "log": list(result.log),
    }


def _report(document: Document, json: bool) -> None:
    out = document["out"]
    if json:
        print_json(document)
    else:
        rows = [
            [name, row["loss"], row["copies"], row["rank_load_max_over_mean"]]
            for name, row in document["held_out"].items()
        ]
        print_table("Held-out data", ["routing", "loss", "copies", "rank load"], rows)
    did = "had been finished" if document["was_finished"] else "was written"
    note(
        f"{out} {did} after {document['num_steps']} steps; measure it with `c2r measure {out}`, "
        f"load it with c2r.from_pretrained({out!r})"
    )
