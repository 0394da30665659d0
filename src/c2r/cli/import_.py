"""`c2r import`: a profile from files that something else wrote."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.adapters.formats import ImportFormat
from c2r.cli.console import JsonOption, note, print_json, progress_bar
from c2r.cli.flags import naming_flags
from c2r.cli.models import resolve_model
from c2r.cli.runs import check_output

if TYPE_CHECKING:
    from c2r.adapters.engines import ModelLayers


_FLAGS = {
    "model": "--model or --num-experts",
    "num_experts": "--num-experts",
    "top_k": "--top-k",
    "is_skipping_bad": "--skip-bad",
}


def import_(
    files: Annotated[list[Path], typer.Argument(help="The files to read, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Profile to write.")],
    format_: Annotated[
        ImportFormat,
        typer.Option(
            "--format",
            metavar="<format>",
            help="c2r-pickle: the C2R authors' topt_*_collaboration.pkl. sglang-per-token: "
            "expert_distribution_recorder_*.pt. vllm-routed: .npy or .npz of routed_experts. "
            "megatron-trace: router_trace_rank*.jsonl. trtllm-raw: rank*_raw.safetensors. "
            "npz: one [tokens, k] array per layer.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Model that was traced; names its routers and checks the trace."),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option(help="E, where neither the files nor --model give it.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Experts per token; needed for c2r-pickle.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out and count them.")
    ] = False,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="The first id of each token is its top-1.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Read a profile from the traces that another program wrote.

    Nothing is run that a file may ask for: of pickles only arrays, tensors and plain values are
    read. Files that hold how often experts were used, but not which together, are refused.
    """
    from c2r.adapters.engines import import_traces, trace_files

    inputs = trace_files(format_, files)
    check_output(out, model, *inputs, *_others(files))
    layers = num_experts if model is None else _model_layers(model)
    start = time.monotonic()
    with naming_flags(**_FLAGS), progress_bar("importing, bytes", None) as advance:
        read = import_traces(
            format_,
            inputs,
            layers,
            top_k=top_k,
            is_skipping_bad=skip_bad,
            is_ordered=ordered,
            num_workers=_num_cores(),
            on_share=lambda done, total, rows: advance.reach(
                done, total, f"importing, {_rate(rows, time.monotonic() - start)}; bytes"
            ),
        )
    seconds = time.monotonic() - start
    profile, num_bad = read.profile, read.num_bad
    if num_bad:
        note(f"left out {num_bad} bad records; the first: {read.first_bad}")
    if read.num_padding:
        note(f"left out {read.num_padding:,} tokens of padding, of the same expert k times")
    profile.save(out)
    if json:
        document = {"out": str(out), "num_layers": profile.num_layers, "num_bad": num_bad}
        document["num_padding"] = read.num_padding
        document |= {"num_tokens": profile.num_tokens, "top_k": profile.top_k}
        print_json({**document, "num_experts": profile.num_experts})
    note(
        f"wrote {out}: {profile.num_layers} layers, {profile.num_experts} experts, "
        f"k = {profile.top_k}, {profile.num_tokens:,} tokens"
    )
    num_rows = sum(layer.num_tokens for layer in profile.layers)
    note(
        f"{num_rows:,} rows, a row for each token and layer, in {seconds:.1f} s on "
        f"{read.num_workers} cores: {_rate(num_rows, seconds * read.num_workers)} a core"
    )


def _num_cores() -> int:
    """Those that this process may use, where the system tells."""
    may_use = getattr(os, "sched_getaffinity", None)
    return len(may_use(0)) if may_use else os.cpu_count() or 1


def _rate(num_rows: int, seconds: float) -> str:
    return f"{num_rows / seconds / 1e6:.2f} million rows a second"


def _others(files: list[Path]) -> list[Path]:
    """What else is in the folders named, but for profiles, which may be written again."""
    folders = [path for path in files if path.is_dir()]
    return [p for folder in folders for p in folder.iterdir() if p.suffix != ".safetensors"]


def _model_layers(model: str) -> "ModelLayers":
    from c2r.adapters.huggingface import read_model_layers

    return read_model_layers(resolve_model(model))
