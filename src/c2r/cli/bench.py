"""`c2r bench`: how long things take, here."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, check_output, example, note, print_json, print_table
from c2r.cli.models import TextOption, load_model_and_tokenizer, resolve_texts
from c2r.cli.processes import (
    is_first_process,
    network_interface,
    num_processes,
    num_processes_per_machine,
)
from c2r.cli.ranks import DEFAULT_TIMEOUT, TimeoutOption, together
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import ClusterTopology
    from c2r.timing import CaseTimes, Recording, TimingReport

app = typer.Typer(help="Measure on this machine or cluster.", no_args_is_help=True)

_SEQ_LEN = 512


@app.command(
    "parallel",
    epilog=example("torchrun --nproc-per-node 4 -m c2r bench parallel MODEL --policy priced=0.1"),
)
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
        list[str],
        typer.Option(help="Policy and strengths to record, as budgeted=0.05,0.1; repeat."),
    ] = ["budgeted=0.1"],  # noqa: B006 - typer copies it
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
    emulate: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Emulate devices: experts take the time of their rows at so many rows a second, "
            "and no processor.",
            show_default="real products",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 7,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    out: Annotated[Path | None, typer.Option(help="Where to write the figures as JSON.")] = None,
    json: JsonOption = False,
) -> None:
    """Time one expert-parallel MoE layer, forward and backward, with every dispatcher.

    It runs on the processes that torchrun starts, with gloo. The routing is a model's own on real
    text, then constrained: the first half of each text is profiled and planned, the second
    recorded. Activations and expert weights are random, of any size.
    """
    from c2r.artifacts import write_text
    from c2r.timing import Recording, TimedLayer, name_policies, share_recording, time_dispatchers

    _check_launched()
    for path in (out, save_recording):
        check_output(path, model, recording, *(text or ()))
    check_output(out, save_recording)
    policies = name_policies(policy)
    shape = TimedLayer(
        num_tokens=tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        dtype=_dtype(dtype),
        rows_per_second=emulate,
    )
    with together(timeout, "gloo") as ranks:
        facts = {"the layer": repr(shape), "the rounds": rounds, "the chunks": chunks or []}
        ranks.agree({**facts, "the policies": list(policies)})
        texts, own = resolve_texts(text), None
        if is_first_process() and recording is not None:
            own = Recording.load(recording)
        elif is_first_process():
            note(f"recording the routing of {model} under {len(policies) + 1} policies")
            own = _record(model, texts, tokens * num_processes(), policies, max_load)
        shared = share_recording(own)
        if save_recording is not None and is_first_process():
            shared.save(save_recording)
        report = time_dispatchers(
            shared, shape, rounds, chunks or (), _note_round(rounds), network_interface()
        )
    if not is_first_process():
        return
    document = report.to_json()
    document["settings"] |= {"model": model, "max_load": max_load}
    if out is not None:
        write_text(out, dumps(document, indent=1) + "\n")
    if json:
        print_json(document)
    else:
        _show(report)


def _check_launched() -> None:
    if num_processes() < 2:
        raise InputError(
            "there is one process and nothing to send; start several: "
            "`torchrun --nproc-per-node 4 -m c2r bench parallel`"
        )


def _topology() -> "ClusterTopology":
    """Nodes count where they hold several ranks."""
    from c2r.plans import ClusterTopology

    num_ranks = num_processes()
    per_node = num_processes_per_machine()
    return ClusterTopology(
        num_ranks=num_ranks, num_nodes=num_ranks // per_node if per_node > 1 else 1
    )


def _dtype(name: str) -> Any:
    import torch

    if name not in ("bfloat16", "float32"):
        raise InputError(f"--dtype {name} is not timed; choose bfloat16 or float32")
    return getattr(torch, name)


def _record(
    model: str,
    texts: Any,
    num_tokens: int,
    policies: dict[str, tuple[str, float]],
    max_load: float | None,
) -> "Recording":
    from c2r.text import split_texts, token_batches
    from c2r.timing import record_routings

    loaded, tokenizer = load_model_and_tokenizer(model)
    calibration, evaluation = split_texts(texts)

    def batches(chosen: Any, count: int) -> Any:
        return token_batches(chosen, tokenizer, seq_len=_SEQ_LEN, batch_size=8, num_tokens=count)

    return record_routings(
        loaded,
        batches(calibration, 65536),
        lambda: batches(evaluation, num_tokens),
        _topology(),
        policies,
        max_load,
    )


def _note_round(rounds: int) -> Any:
    return lambda index: note(f"round {index + 1} of {rounds}") if is_first_process() else None


def _show(report: "TimingReport") -> None:
    columns = ["case", "loss", "ms", "of the first", "index", "out", "compute", "back", "load"]
    rows = [_row(times, report.losses[times.case.routing]) for times in report.cases]
    rate = report.settings["emulated_rows_per_second"]
    compute = "" if rate is None else f"; compute emulated, {rate:,.0f} rows a second"
    print_table(f"One MoE layer, forward and backward{compute}", [*columns, "MB"], rows)
    print(
        "loss: nats per token of the recorded text. of the first: median ratio of a round, with\n"
        "quartiles. index, out, compute, back: mean ms of a rank in index and copies, waiting\n"
        "on the way to the experts, in the experts, waiting on the way back. load: expert rows\n"
        "of the busiest rank over the mean. MB: sent by all ranks, of predicted."
    )


def _row(times: "CaseTimes", loss: float) -> list[object]:
    ratio = times.ratio
    return [
        times.case.name,
        loss,
        f"{times.seconds.median * 1000:.0f}",
        f"{ratio.median:.2f} ({ratio.lower:.2f}-{ratio.upper:.2f})",
        *(f"{seconds * 1000:.0f}" for seconds in times.parts.values()),
        f"{times.rank_load_max_over_mean:.2f}",
        f"{_megabytes(times.bytes_sent)} of {_megabytes(times.bytes_predicted)}",
    ]


def _megabytes(count: float | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}"
