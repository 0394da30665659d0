"""`c2r bench cluster`: links, products, copies and memory of the machines that we run on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table
from c2r.cli.processes import (
    arguments_of,
    is_first_process,
    is_launched,
    num_processes,
    num_processes_per_machine,
    place_on_machine,
    run_processes,
)
from c2r.cli.ranks import DEFAULT_TIMEOUT, TimeoutOption, together
from c2r.cli.runs import check_output
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.timing import ClusterReport

_DTYPES = ("bfloat16", "float16", "float32")


def cluster(
    context: typer.Context,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Processes to start on this machine, where torchrun starts none.",
            show_default="one for each GPU",
        ),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Also measure each pair of ranks, for a rate of each.")
    ] = False,
    hidden_size: Annotated[int, typer.Option(min=16, help="Of the experts that are timed.")] = 2048,
    intermediate_size: Annotated[int, typer.Option(min=16, help="Their inner width.")] = 768,
    experts: Annotated[int, typer.Option(min=1, help="Experts of each rank.")] = 8,
    size: Annotated[
        list[int] | None,
        typer.Option(
            min=64,
            help="Bytes that a rank sends in an exchange; repeat.",
            show_default="4 KiB to 64 MiB, while under a second",
        ),
    ] = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Rows of a rank's experts; repeat.",
            show_default="64 to 32768, while under a second",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 7,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    out: Annotated[
        Path, typer.Option(help="YAML file to write, which --cluster of other commands reads.")
    ] = Path("cluster.yaml"),
    json: JsonOption = False,
) -> None:
    """Measure this cluster, and write the file that `--cluster` reads.

    Links inside and between nodes by size of the exchange, the experts' products by rows, copies,
    memory, and what a layer costs besides. Figures are those of the worst rank. It runs on the
    processes that torchrun starts, one for each device: with NCCL on GPUs, else with gloo.
    """
    import torch

    from c2r.plans import ClusterTopology
    from c2r.timing import ClusterSettings, measure_cluster
    from c2r.timing.cluster import ROWS, SIZES

    if dtype not in _DTYPES:
        raise InputError(f"--dtype {dtype} is not timed; choose {', '.join(_DTYPES)}")
    check_output(out)
    settings = ClusterSettings(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_experts=experts,
        dtype=getattr(torch, dtype),
        sizes=_growing(size, SIZES, "--size"),
        rows=_growing(rows, ROWS, "--rows"),
        num_rounds=rounds,
        is_by_pair=matrix,
    )
    if not is_launched():
        raise typer.Exit(run_processes(arguments_of(context), _number(ranks)))
    _check_launched(ranks)
    topology = ClusterTopology(
        num_ranks=num_processes(), num_nodes=num_processes() // num_processes_per_machine()
    )
    with together(timeout, _backend) as joined:
        joined.agree({"what is measured": repr(settings), "nodes": topology.num_nodes})
        assert joined.comm is not None, "there are several ranks"
        if is_first_process():
            note(f"measuring {topology.num_ranks} ranks on {topology.num_nodes} nodes")
        report = measure_cluster(
            joined.comm,
            topology,
            settings,
            lambda index: note(f"round {index + 1} of {rounds}") if is_first_process() else None,
        )
        if is_first_process():
            report.cluster.save(out)
    if is_first_process():
        _report(report, out, json)


def _growing(given: list[int] | None, default: tuple[int, ...], option: str) -> tuple[int, ...]:
    """The numbers in order. Raises `InputError` for a single one, which tells no line."""
    numbers = tuple(sorted(set(given or default)))
    if len(numbers) < 2:
        raise InputError(f"{option} {numbers[0]} alone tells no rate; give two or more")
    return numbers


def _number(ranks: int | None) -> int:
    import torch

    number = ranks or torch.cuda.device_count()
    if number < 2:
        raise InputError(
            f"there are {number} GPUs, and nothing to send; say how many processes share this "
            "machine (--ranks 4), or start one for each device: "
            "`torchrun --nproc-per-node 8 -m c2r bench cluster`"
        )
    return number


def _check_launched(ranks: int | None) -> None:
    number = num_processes()
    if number < 2:
        raise InputError("there is one process and nothing to send; start several by torchrun")
    if ranks is not None and ranks != number:
        raise InputError(f"--ranks {ranks}, but torchrun started {number}; leave out --ranks")


def _backend() -> str:
    """NCCL where each rank of this machine has a GPU of its own, which it then takes; else gloo."""
    import torch

    devices, place = torch.cuda.device_count(), place_on_machine()
    if not devices:
        return "gloo"
    if place >= devices:
        raise InputError(
            f"process {place} of this machine has no GPU, for there are {devices}; start "
            f"`torchrun --nproc-per-node {devices}`"
        )
    torch.cuda.set_device(place)
    return "nccl"


def _report(report: "ClusterReport", out: Path, json: bool) -> None:
    if json:
        print_json({**report.to_json(), "out": str(out)})
        return
    _show_links(report)
    rows: list[list[object]] = [
        [
            f"{product.num_rows:,}",
            f"{product.seconds.median * 1e3:.3f}",
            f"{product.seconds.lower * 1e3:.3f}-{product.seconds.upper * 1e3:.3f}",
            f"{product.teraflops:.4g}",
        ]
        for product in report.products
    ]
    print_table("Experts' products, slowest rank", ["rows", "ms", "quartiles", "TFLOP/s"], rows)
    found = report.cluster
    print(
        f"Copies: {found.memory_gigabytes_per_second:g} GB/s read and written. Memory: "
        f"{found.memory_gigabytes:g} GB a rank. A layer besides: {found.launch_microseconds:g} us."
    )
    print(f"Wrote {out}: c2r estimate PROFILE --cluster {out}")


def _show_links(report: "ClusterReport") -> None:
    """All to all by size; then each rank and direction, and pairs, by their fitted lines."""
    together = [link for link in report.links if link.pattern.kind == "all"]
    rows: list[list[object]] = [
        [
            link.pattern.level,
            f"{size:,}",
            f"{spread.median * 1e3:.3f}",
            f"{spread.lower * 1e3:.3f}-{spread.upper * 1e3:.3f}",
            f"{size / spread.median / 1e9:.4g}",
        ]
        for link in together
        for size, spread in zip(link.num_bytes, link.seconds, strict=True)
    ]
    columns = ["links", "bytes of a rank", "ms", "quartiles", "GB/s"]
    print_table("All ranks to all", columns, rows)
    fitted: list[list[object]] = [
        [
            link.pattern.level,
            link.pattern.kind,
            " to ".join(map(str, link.pattern.ranks)) or "each",
            f"{link.line[0] * 1e6:.1f}",
            f"{link.gigabytes:.4g}",
        ]
        for link in report.links
    ]
    columns = ["links", "who", "rank", "latency, us", "GB/s"]
    print_table("Fitted lines: latency + bytes / rate", columns, fitted)
    found = report.cluster
    print(
        f"Taken is the worst line: inside nodes {found.inner_gigabytes:g} GB/s and "
        f"{found.inner_microseconds:g} us, between nodes {found.outer_gigabytes:g} GB/s and "
        f"{found.outer_microseconds:g} us."
    )
