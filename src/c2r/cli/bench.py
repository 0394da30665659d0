"""`c2r bench`: how long things take, here."""

import os
import platform
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table
from c2r.cli.models import TextOption, load_model_and_tokenizer, resolve_texts
from c2r.cli.processes import (
    is_first_process,
    network_interface,
    num_processes,
    num_processes_per_machine,
)
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import ClusterTopology
    from c2r.timing import Case, CaseTimes, Recording

app = typer.Typer(help="Measure on this machine or cluster.", no_args_is_help=True)

_SEQ_LEN = 512


@app.command("parallel")
def parallel(
    model: Annotated[
        str, typer.Argument(help="Model whose routing is recorded; `tiny` is the embedded one.")
    ] = "tiny",
    text: TextOption = None,
    recording: Annotated[
        Path | None, typer.Option(help="Routing recorded earlier, instead of model and text.")
    ] = None,
    save_recording: Annotated[
        Path | None, typer.Option(help="Where to keep the recorded routing.")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="Policy and strength, as budgeted:0.1; repeat.")
    ] = None,
    max_load: Annotated[
        float | None, typer.Option(help="Bound on the busiest rank's load in the placement.")
    ] = None,
    chunks: Annotated[
        list[int] | None, typer.Option(min=1, help="Also overlap, in so many parts; repeat.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each rank.")] = 1024,
    hidden_size: Annotated[int, typer.Option(help="Of the layer that is timed.")] = 1024,
    intermediate_size: Annotated[int, typer.Option(help="Of its experts.")] = 512,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 7,
    out: Annotated[Path | None, typer.Option(help="Where to write the figures as JSON.")] = None,
    json: JsonOption = False,
) -> None:
    """Time one expert-parallel MoE layer, forward and backward, with every dispatcher.

    Under torchrun, gloo: `torchrun --nproc-per-node 4 --no-python c2r bench parallel`. The routing
    is a model's own on real text, then constrained: the first half of each text is profiled and
    planned, the second recorded. Activations and expert weights are random, of any size.
    """
    from c2r.artifacts import write_text
    from c2r.timing import TimedLayer, time_cases

    _check_launched()
    policies, chosen_dtype = _policies(policy or ["budgeted:0.1"]), _dtype(dtype)
    texts = resolve_texts(text)
    topology = _topology()
    num_tokens = tokens * topology.num_ranks

    def prepare() -> "Recording":
        from c2r.timing import Recording

        if recording is not None:
            return Recording.load(recording)
        note(f"recording the routing of {model} under {len(policies) + 1} policies")
        return _record(model, texts, topology, policies, (max_load, num_tokens))

    shared = _from_first_rank(prepare)
    if save_recording is not None and is_first_process():
        shared.save(save_recording)
    shape = TimedLayer(
        num_tokens=tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        dtype=chosen_dtype,
    )
    found = time_cases(
        shared,
        _cases(shared, chunks or []),
        shape,
        rounds,
        _note_round(rounds),
        network_interface(),
    )
    if not is_first_process():
        return
    settings = {
        "model": model,
        "tokens_per_rank": tokens,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "dtype": dtype,
        "rounds": rounds,
        "max_load": max_load,
    }
    document = _document(found, shared, settings)
    if out is not None:
        write_text(out, dumps(document, indent=1) + "\n")
    if json:
        print_json(document)
        return
    _show(found, shared)


def _check_launched() -> None:
    if num_processes() < 2:
        raise InputError(
            "there is one process and nothing to send; start several: "
            "`torchrun --nproc-per-node 4 --no-python c2r bench parallel`"
        )


def _topology() -> "ClusterTopology":
    """Nodes count where they hold several ranks."""
    from c2r.plans import ClusterTopology

    num_ranks = num_processes()
    per_node = num_processes_per_machine()
    return ClusterTopology(
        num_ranks=num_ranks, num_nodes=num_ranks // per_node if per_node > 1 else 1
    )


def _policies(texts: list[str]) -> dict[str, tuple[str, float]]:
    policies = {}
    for text in texts:
        name, _, strength = text.partition(":")
        try:
            policies[f"{name} {strength}"] = (name, float(strength))
        except ValueError:
            raise InputError(
                f"--policy {text} has no strength; write it as budgeted:0.1 or c2r:8"
            ) from None
    return policies


def _dtype(name: str) -> Any:
    import torch

    if name not in ("bfloat16", "float32"):
        raise InputError(f"--dtype {name} is not timed; choose bfloat16 or float32")
    return getattr(torch, name)


def _record(
    model: str,
    texts: Any,
    topology: "ClusterTopology",
    policies: dict[str, tuple[str, float]],
    limits: tuple[float | None, int],
) -> "Recording":
    from c2r.text import split_texts, token_batches
    from c2r.timing import record_routings

    max_load, num_tokens = limits
    loaded, tokenizer = load_model_and_tokenizer(model)
    calibration, evaluation = split_texts(texts)

    def batches(chosen: Any, count: int) -> Any:
        return token_batches(chosen, tokenizer, seq_len=_SEQ_LEN, batch_size=8, num_tokens=count)

    return record_routings(
        loaded,
        batches(calibration, 65536),
        lambda: batches(evaluation, num_tokens),
        topology,
        policies,
        max_load,
    )


def _from_first_rank(prepare: Any) -> "Recording":
    """What the first rank prepares, on all ranks."""
    from c2r.parallel import gather_bytes
    from c2r.timing import Recording

    return Recording.decode(gather_bytes(prepare().encode() if is_first_process() else b"")[0])


def _cases(recording: "Recording", chunks: list[int]) -> "list[Case]":
    from c2r.timing import Case

    cases = [
        Case(name="k_fold", dispatcher="k_fold"),
        Case(name="all_gather", dispatcher="all_gather"),
        Case(name="zero_redundancy", dispatcher="zero_redundancy"),
        Case(name="zero_redundancy, placed", dispatcher="zero_redundancy", is_placed=True),
    ]
    constrained = [name for name in recording.routings if name != "top_k"]
    cases += [
        Case(
            name=f"zero_redundancy, placed, {name}",
            dispatcher="zero_redundancy",
            routing=name,
            is_placed=True,
        )
        for name in constrained
    ]
    overlapped = [case for case in cases if case.is_placed or case.dispatcher == "k_fold"]
    if recording.topology.num_nodes > 1:
        cases += [
            replace(
                case,
                name=case.name.replace("zero_redundancy", "hierarchical"),
                dispatcher="hierarchical",
            )
            for case in cases
            if case.dispatcher == "zero_redundancy"
        ]
    cases += [
        replace(case, name=f"{case.name}, {count} chunks", num_chunks=count)
        for case in overlapped
        for count in chunks
    ]
    return cases


def _note_round(rounds: int) -> Any:
    return lambda index: note(f"round {index + 1} of {rounds}") if is_first_process() else None


def _document(
    found: "list[CaseTimes]", recording: "Recording", settings: dict[str, Any]
) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "benchmark": "expert_parallel",
        "baseline": found[0].case.name,
        "settings": settings,
        "topology": {
            "num_ranks": recording.topology.num_ranks,
            "num_nodes": recording.topology.num_nodes,
        },
        "losses": {name: routing.loss for name, routing in recording.routings.items()},
        "cases": [times.to_json() for times in found],
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads_per_rank": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _show(found: "list[CaseTimes]", recording: "Recording") -> None:
    columns = [
        "case",
        "loss",
        "ms",
        "of the first",
        "index",
        "out",
        "compute",
        "back",
        "load",
        "MB",
    ]
    rows = [
        [
            times.case.name,
            recording.routings[times.case.routing].loss,
            f"{times.seconds.median * 1000:.0f}",
            f"{times.ratio.median:.2f} ({times.ratio.lower:.2f}-{times.ratio.upper:.2f})",
            *(f"{seconds * 1000:.0f}" for seconds in times.parts.values()),
            f"{times.rank_load_max_over_mean:.2f}",
            f"{_megabytes(times.bytes_sent)} of {_megabytes(times.bytes_predicted)}",
        ]
        for times in found
    ]
    print_table("One MoE layer, forward and backward", columns, rows)
    print(
        "loss: nats per token of the recorded text. of the first: median ratio of a round, with\n"
        "quartiles. index, out, compute, back: mean ms of a rank in index and copies, waiting\n"
        "on the way to the experts, in the experts, waiting on the way back. load: expert rows\n"
        "of the busiest rank over the mean. MB: sent by all ranks, of predicted."
    )


def _megabytes(count: float | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}"
