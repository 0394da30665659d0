"""`c2r import`: a profile from files that something else wrote."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.console import JsonOption, note, print_json, progress_bar
from c2r.cli.models import resolve_model
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.adapters.engines import ModelLayers


class ImportFormat(StrEnum):
    """Formats that can be read."""

    C2R_PICKLE = "c2r-pickle"
    SGLANG_PER_TOKEN = "sglang-per-token"
    VLLM_ROUTED = "vllm-routed"
    MEGATRON_TRACE = "megatron-trace"
    TENSORRT_LLM_RAW = "trtllm-raw"
    NPZ = "npz"


def import_(
    files: Annotated[list[Path], typer.Argument(help="The files to read, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Profile to write.")],
    format_: Annotated[
        ImportFormat,
        typer.Option(
            "--format",
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
    """Read which experts tokens chose, as another program recorded it, as a profile.

    Nothing is run that a file may ask for: of pickles only arrays, tensors and plain values are
    read. Files that hold how often experts were used, but not which together, are refused.
    """
    num_bad = 0
    if format_ is ImportFormat.C2R_PICKLE:
        from c2r.adapters.engines.c2r_pickle import read_c2r_pickle

        if len(files) != 1 or top_k is None:
            raise InputError("c2r-pickle reads one file and wants --top-k, which it does not say")
        profile = read_c2r_pickle(files[0], top_k)
    else:
        from c2r.adapters.engines import import_traces

        layers = num_experts if model is None else _model_layers(model)
        with progress_bar("importing, files", None) as advance:
            read = import_traces(
                format_.value,
                files,
                layers,
                is_skipping_bad=skip_bad,
                is_ordered=ordered,
                num_workers=os.cpu_count() or 1,
                on_files=advance,
            )
        profile, num_bad = read.profile, read.num_bad
        if num_bad:
            note(f"left out {num_bad} bad records; the first: {read.first_bad}")
    profile.save(out)
    if json:
        document = {"out": str(out), "num_layers": profile.num_layers, "num_bad": num_bad}
        document |= {"num_tokens": profile.num_tokens, "top_k": profile.top_k}
        print_json({**document, "num_experts": profile.num_experts})
    note(
        f"wrote {out}: {profile.num_layers} layers, {profile.num_experts} experts, "
        f"k = {profile.top_k}, {profile.num_tokens:,} tokens"
    )


def _model_layers(model: str) -> "ModelLayers":
    from c2r.adapters.huggingface import read_model_layers

    return read_model_layers(resolve_model(model))
