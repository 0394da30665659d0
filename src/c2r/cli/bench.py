"""`c2r bench`: how long things take, here."""

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table
from c2r.cli.flags import chunks_of
from c2r.cli.models import TextOption, load_model_and_tokenizer, resolve_texts
from c2r.cli.processes import (
    is_first_process,
    network_interface,
    num_processes,
    num_processes_per_machine,
)
from c2r.cli.ranks import DEFAULT_TIMEOUT, TimeoutOption, together
from c2r.cli.runs import check_output
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import ClusterTopology
    from c2r.prediction import Cluster
    from c2r.timing import CaseTimes, DeviceRate, Placing, Recording, TimingReport

_LOSS_TOKENS = 16384  # fewer would not tell 0.1 % of loss


def parallel(
    model: Annotated[
        str, typer.Argument(help="Model whose routing is recorded; `tiny` is the embedded one.")
    ] = "tiny",
    text: TextOption = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Routing of any model as .npz, instead of model and text; no policies."),
    ] = None,
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
        float | None,
        typer.Option(
            help="Bound on the busiest rank's load in the placement.",
            show_default="1.1, or the next that can be kept",
        ),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(
            min=0,
            help="Further experts that each rank holds a replica of, as a case beside placement "
            "without. A training step sums their gradients once, outside the layer: not timed.",
        ),
    ] = 0,
    calibration_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to place by; none of them is timed.")
    ] = 65536,
    layers: Annotated[
        int | None, typer.Option(min=1, help="MoE layers to time.", show_default="all")
    ] = None,
    chunks: Annotated[
        list[str] | None,
        typer.Option(
            help="Also overlap, in so many parts; auto: each layer tries several. Repeat."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each rank.")] = 1024,
    hidden_size: Annotated[int, typer.Option(help="Of the layer that is timed.")] = 1024,
    intermediate_size: Annotated[int, typer.Option(help="Of its experts.")] = 512,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    device: Annotated[
        str,
        typer.Option(
            help="real, or emulated: experts take the time of their rows and no processor."
        ),
    ] = "real",
    cluster: Annotated[
        str | None,
        typer.Option(
            help="What this runs on, or emulates: a preset of `c2r plan` or a YAML file. Experts "
            "are placed for least time there, and times predicted.",
            show_default="unknown: placed for few copies",
        ),
    ] = None,
    rows_per_second: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Expert rows a second of an emulated device, forward.",
            show_default="by the products of the cluster",
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
    recorded; or that of a trace, of which every other sequence is planned. Activations and expert
    weights are random, of any size.
    """
    from c2r.timing import (
        Network,
        Placing,
        Recording,
        TimedLayer,
        name_policies,
        read_routing,
        record_file,
        share_recording,
        time_dispatchers,
        workload_of,
    )

    _check_launched()
    for target, other in ((out, None), (save_recording, out)):
        check_output(target, other, model, recording, trace, cluster, *(text or ()))
    overlaps = [chunks_of(each) for each in chunks or ()]
    _check_replicas(replicas, recording)
    policies = name_policies(policy if trace is None else [])
    where = _cluster(cluster, rows_per_second, hidden_size * intermediate_size)
    shape = TimedLayer(
        num_tokens=tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        dtype=_dtype(dtype),
        device=_device(device, where, rows_per_second, hidden_size * intermediate_size),
    )
    own = None
    with together(timeout, "gloo") as ranks:
        ranks.agree({"the layer": repr(shape), "the policies": list(policies), "rounds": rounds})
        if is_first_process():
            placing = Placing(
                topology=_topology(),
                max_load=max_load,
                cluster=where,
                workload=workload_of(shape),
                replicas=replicas,
            )
            num_tokens = tokens * num_processes()
            if recording is not None:
                own = Recording.load(recording)
            elif trace is not None:
                own = record_file(
                    read_routing(trace, layers), num_tokens, calibration_tokens, placing
                )
            else:
                note(f"recording the routing of {model} under {len(policies) + 1} policies")
                own = _record(
                    model, resolve_texts(text), num_tokens, calibration_tokens, policies, placing
                )
        shared = share_recording(own)
        if save_recording is not None and is_first_process():
            shared.save(save_recording)
        network = Network(interface=network_interface(), cluster=where)
        report = time_dispatchers(
            shared.of_layers(layers), shape, rounds, overlaps, _note_round(rounds), network
        )
    settings = {
        "routing": model if trace is None else trace.name,
        "calibration_tokens": calibration_tokens,
        "max_load": shared.max_load,
        "replicas": shared.num_replicas,
    }
    if is_first_process():
        _report(report, settings, out, json)


def _report(report: "TimingReport", settings: dict[str, Any], out: Path | None, json: bool) -> None:
    from c2r.artifacts import write_text

    document = report.to_json()
    document["settings"] |= settings
    if out is not None:
        write_text(out, dumps(document, indent=1) + "\n")
    print_json(document) if json else _show(report)


def _check_launched() -> None:
    if num_processes() < 2:
        raise InputError(
            "there is one process and nothing to send; start several: "
            "`torchrun --nproc-per-node 4 -m c2r bench parallel`"
        )


def _check_replicas(replicas: int, recording: Path | None) -> None:
    if replicas and recording is not None:
        raise InputError(
            f"{recording} holds the replicas that were planned when it was recorded; give "
            "--replicas then, with --save-recording"
        )


def _topology() -> "ClusterTopology":
    from c2r.plans import ClusterTopology

    num_ranks = num_processes()
    return ClusterTopology(num_ranks=num_ranks, num_nodes=num_ranks // num_processes_per_machine())


def _dtype(name: str) -> Any:
    import torch

    if name not in ("bfloat16", "float32"):
        raise InputError(f"--dtype {name} is not timed; choose bfloat16 or float32")
    return getattr(torch, name)


def _cluster(name: str | None, rows_per_second: float | None, size: int) -> "Cluster | None":
    """The cluster named, of as many ranks and nodes as run, its devices as fast as asked."""
    from c2r.prediction import find_cluster

    if name is None:
        return None
    topology = _topology()
    found = find_cluster(name).of_size(topology.num_ranks, topology.num_nodes)
    if rows_per_second is None:
        return found
    return replace(found, teraflops=rows_per_second * _flops(size) / 1e12)


def _flops(size: int) -> float:
    """Of an expert row, forward; of an expert with 3 x `size` parameters."""
    return 2.0 * 3 * size


def _device(
    name: str, cluster: "Cluster | None", rows_per_second: float | None, size: int
) -> "DeviceRate | None":
    """The device to emulate, whose experts have 3 x `size` parameters; None for real products."""
    from c2r.timing import DeviceRate

    if name not in ("real", "emulated"):
        raise InputError(f"--device {name} is unknown; choose real or emulated")
    if name == "real":
        if rows_per_second is not None:
            raise InputError("--rows-per-second is of an emulated device; add --device emulated")
        return None
    if rows_per_second is None:
        if cluster is None:
            raise InputError("how fast is the device? Give --cluster or --rows-per-second")
        rows_per_second = cluster.teraflops * 1e12 / _flops(size)
    launch = 0.0 if cluster is None else cluster.launch_microseconds / 1e6
    return DeviceRate(rows_per_second=rows_per_second, launch_seconds=launch)


def _record(
    model: str,
    texts: Any,
    num_tokens: int,
    calibration_tokens: int,
    policies: dict[str, tuple[str, float]],
    placing: "Placing",
) -> "Recording":
    from c2r.text import split_texts
    from c2r.timing import record_routings, spread_windows

    loaded, tokenizer = load_model_and_tokenizer(model)
    calibration, evaluation = split_texts(texts)

    return record_routings(
        loaded,
        spread_windows(calibration, tokenizer, calibration_tokens),
        lambda: spread_windows(evaluation, tokenizer, max(num_tokens, _LOSS_TOKENS)),
        policies,
        placing,
        num_tokens,
    )


def _note_round(rounds: int) -> Any:
    return lambda index: note(f"round {index + 1} of {rounds}") if is_first_process() else None


def _show(report: "TimingReport") -> None:
    columns = [
        "case",
        "loss",
        "ms",
        "predicted",
        "of the first",
        "reorder",
        "out",
        "compute",
        "back",
    ]
    rows = [_row(times, report) for times in report.cases]
    device = report.settings["device"]
    compute = "compute real"
    if device is not None:
        launch = 1e6 * device["launch_seconds"]
        compute = f"compute emulated, {device['rows_per_second']:,.0f} rows a second"
        compute += f" and {launch:.0f} us a start"
    title = f"One MoE layer, forward and backward; {compute}"
    print_table(title, [*columns, "rank load", "rows in", "MB"], rows)
    print(
        "loss: held-out increase over the model's own routing. predicted: ms by the time model.\n"
        "of the first: median ratio of a round, with quartiles. reorder, out, compute, back: mean\n"
        "ms of a rank: getting rows in order, waiting on the way to the experts, in the experts,\n"
        "waiting on the way back. rank load: expert rows of the busiest rank over the mean. rows\n"
        "in: that come to the rank with most of them. MB: sent by all ranks, of predicted."
    )


def _row(times: "CaseTimes", report: "TimingReport") -> list[object]:
    ratio, predicted = times.ratio, times.predicted
    return [
        _name(times),
        _increase(report.losses[times.case.routing], report.losses["top_k"]),
        f"{times.seconds.median * 1000:.0f}",
        "?" if predicted is None else f"{predicted['total'] * 1000:.0f}",
        f"{ratio.median:.2f} ({ratio.lower:.2f}-{ratio.upper:.2f})",
        *(f"{seconds * 1000:.0f}" for seconds in times.parts.values()),
        f"{times.rank_load_max_over_mean:.2f}",
        f"{times.rows_received:.0f}",
        f"{_megabytes(times.bytes_sent)} of {_megabytes(times.bytes_predicted)}",
    ]


def _name(times: "CaseTimes") -> str:
    """Of the case; where its layers have chosen how to overlap, with the numbers of parts."""
    from c2r.prediction.rows import DISPATCH_WORDS

    case = times.case
    name = case.name.replace(case.dispatcher, DISPATCH_WORDS[case.dispatcher], 1)
    if case.num_chunks != "auto":
        return name
    return f"{name} ({', '.join(map(str, times.num_chunks))})"


def _increase(loss: float | None, own: float | None) -> str:
    return "?" if loss is None or own is None else f"{100 * (loss / own - 1):+.2f} %"


def _megabytes(count: float | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}"
