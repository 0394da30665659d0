"""Loading of models, tokenizers and texts as commands name them."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import note
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions
from c2r.cli.processes import is_first_process, num_processes
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.adapters.huggingface import ParallelOptions
    from c2r.plans import Plan
    from c2r.text import Text

ModelArgument = Annotated[
    str,
    typer.Argument(help="Hugging Face folder or hub name; `tiny` is the embedded model."),
]
TextOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--text", help="UTF-8 text file; repeat for several.", show_default="embedded text"
    ),
]
RequiredTextOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="UTF-8 text file of the kind that the model will serve; repeat for several.",
        show_default="needed; of `tiny` the embedded text",
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="Conversations, rendered by the model's chat template, in place of --text: .jsonl, "
        ".parquet, or a data set's folder or hub name (user/name); repeat for several.",
    ),
]
PlanOption = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        help="Plan from `c2r plan`.",
        show_default="that of the model's folder, else plain top-k",
    ),
]
ExpertParallelOption = Annotated[
    bool,
    typer.Option("--expert-parallel", help="Spread the experts over the processes of torchrun."),
]


def resolve_model(name: str) -> str:
    """The folder or hub name behind a command's MODEL."""
    from c2r.assets import tiny_folder

    return str(tiny_folder()) if name == "tiny" else name


def resolve_texts(paths: Sequence[Path] | None) -> "tuple[Text, ...]":
    """The texts that a command names, or the embedded held-out ones; says what may surprise."""
    from c2r.assets import heldout_files
    from c2r.text import read_texts

    texts = read_texts(paths or heldout_files())
    if is_first_process():
        if not paths:
            size = sum(len(text.content) for text in texts) // 1000
            note(
                f"no --text: the embedded text is used, {size} kB of Python, English and C "
                "headers; give text of the kind that the model will serve"
            )
        for path in paths or ():
            if path.suffix in (".jsonl", ".json", ".parquet"):
                note(f"{path} is read as plain text, its JSON included; --data reads what it says")
    return texts


def check_all_data(*paths: Path) -> None:
    """Raises `InputError` unless all data can be read, before a model is loaded for it."""
    from c2r.text import check_data

    for path in paths:
        check_data(path)


def note_work(what: str, num_tokens: int, seq_len: int, batch_size: int) -> None:
    """Says how much is to be done, before it is."""
    if is_first_process():
        number = -(-num_tokens // seq_len)
        windows = f"{number:,} windows" if number > 1 else "1 window"
        note(
            f"{what} up to {num_tokens:,} tokens: {windows} of up to {seq_len:,}, {batch_size} at "
            "a time"
        )


def note_unused(fields: Iterable[str]) -> None:
    """Says which fields of messages changed nothing, for the chat template does not name them."""
    names = sorted(fields)
    if names and is_first_process():
        note(f"left out, for the chat template does not use them: {', '.join(names)}")


def file_digest(path: Path) -> str:
    """Identifies the content of a file; empty for what is none, such as a data set's name."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def load_on_ranks(
    name: str, loading: ModelOptions, expert_parallel: bool, timeout: float
) -> tuple[Any, Any]:
    """As `load_model_and_tokenizer`; if so asked, each process keeps some of the experts only.

    Raises:
        InputError: the experts of one process are to be spread.
    """
    from c2r.adapters.huggingface import ParallelOptions

    if not expert_parallel:
        return load_model_and_tokenizer(name, loading)
    if num_processes() == 1:
        raise InputError(
            "--expert-parallel needs several processes; start it by `torchrun --nproc-per-node "
            "NUMBER -m c2r ...`"
        )
    return load_spread(name, loading, None, ParallelOptions(timeout=timeout))


def load_spread(
    name: str,
    loading: ModelOptions,
    plan: "Plan | None",
    options: "ParallelOptions",
    fsdp: bool = False,
) -> tuple[Any, Any]:
    """As `load_model_and_tokenizer`, the experts spread over all processes by `load_parallel`."""
    from c2r.adapters.huggingface import load_parallel

    load = partial(load_parallel, plan=plan, options=options, fsdp=fsdp)
    loaded, tokenizer = load_model_and_tokenizer(name, loading, load)
    return loaded.to(loading.own_device()), tokenizer


def load_model_and_tokenizer(
    name: str, loading: ModelOptions = DEFAULT_LOADING, load: Callable[..., Any] | None = None
) -> tuple[Any, Any]:
    """The model where it is to run, constrained if its folder holds a plan, and its tokenizer.

    `load`, given the source, the type and what else `from_pretrained` takes, stands in for
    `c2r.load_model`; it places the model itself.

    `auto` keeps the checkpoint's type, but runs the embedded model in float32: on most CPUs
    bfloat16 is several times slower.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from c2r.adapters.huggingface import find_source, is_hub_name, load_model, load_tokenizer
    from c2r.adapters.huggingface.placement import describe_placement

    dtype = loading.dtype
    if name == "tiny":
        dtype = "float32" if dtype == "auto" else dtype
        disable_progress_bar()
    location = resolve_model(name)
    if is_hub_name(location):
        note(f"{name} is no folder here; asking the Hugging Face hub")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    found = find_source(location, **loading.origin)
    options: dict[str, Any] = {}
    if loading.attn_implementation is not None:
        options["attn_implementation"] = loading.attn_implementation
    if load is None:
        load, options = load_model, {**options, **loading.placement(found, chosen)}
    model = load(found, dtype=chosen, **options)
    tokenizer = load_tokenizer(found)
    if is_first_process():
        size = sum(entry.numel() * entry.element_size() for entry in model.parameters()) / 1e9
        note(f"{name} runs on {describe_placement(model)}, {size:,.2f} GB of weights")
    return model, tokenizer


def plan_of(model: Any, path: Path | None) -> "Plan":
    """The plan at `path`; without one that of the model, or plain top-k on a single rank."""
    from c2r.adapters.huggingface import applied_plan
    from c2r.measuring import free_plan
    from c2r.plans import Plan

    if path is not None:
        return Plan.load(path)
    return applied_plan(model) or free_plan(model)
