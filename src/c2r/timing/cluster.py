"""Measures the cluster that the processes of torchrun are on: links, products, copies, memory.

Each figure is one of `c2r.prediction.Cluster`, of the worst rank, for a layer waits for it.
"""

import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.ops.gated_activation import silu_gated
from c2r.ops.grouped_linear import grouped_linear
from c2r.parallel import Comm, gather_bytes, make_dispatcher, parallel_moe
from c2r.plans import ClusterTopology
from c2r.prediction import Cluster
from c2r.timing.clocks import Spread
from c2r.timing.links import (
    LinkTimes,
    Pattern,
    fit_line,
    levels,
    link_matrix,
    make_exchange,
    patterns,
)
from c2r.types import Float

SIZES = (4 << 10, 64 << 10, 1 << 20, 8 << 20, 64 << 20)
"""Bytes that a rank sends in an exchange."""
ROWS = (64, 512, 4096, 32768)
"""Rows of the experts' products."""

_MOST_SECONDS = 1.0
_GROWTH = 8  # from one size to the next, at least: what took 1/8 s would take a second
_COPIED_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
_SMALL = 16  # hidden and expert size of the layer whose overhead is timed

Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSettings:
    """What is measured.

    Attributes:
        hidden_size: of the experts whose products are timed.
        intermediate_size: their inner width.
        num_experts: of each rank.
        dtype: that they compute in.
        sizes: bytes that a rank sends in an exchange, growing; two at least.
        rows: rows of the products on a rank, growing; two at least.
        num_rounds: how often everything runs, interleaved.
        is_by_pair: whether each pair of ranks is measured, too: the rate of every link.
    """

    hidden_size: int = 2048
    intermediate_size: int = 768
    num_experts: int = 8
    dtype: torch.dtype = torch.bfloat16
    sizes: tuple[int, ...] = SIZES
    rows: tuple[int, ...] = ROWS
    num_rounds: int = 7
    is_by_pair: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductTimes:
    """The experts' products of so many rows a rank: of the slowest rank."""

    num_rows: int
    seconds: Spread
    teraflops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterReport:
    """A cluster as it was measured.

    Attributes:
        cluster: its figures; `source` says when and where.
        links: what each exchange took.
        products: by rows.
        copy_gigabytes: GB/s read and written of each rank that copies its memory.
        layer_seconds: of a layer of one token a rank.
        settings: of the run, as JSON data.
    """

    cluster: Cluster
    links: tuple[LinkTimes, ...]
    products: tuple[ProductTimes, ...]
    copy_gigabytes: tuple[float, ...]
    layer_seconds: Spread
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "benchmark": "cluster",
            "settings": dict(self.settings),
            "cluster": asdict(self.cluster),
            "links": [
                {**asdict(link), "gigabytes": link.gigabytes, "latency_seconds": link.line[0]}
                for link in self.links
            ],
            "products": [asdict(product) for product in self.products],
            "copy_gigabytes": list(self.copy_gigabytes),
            "layer_seconds": asdict(self.layer_seconds),
        }


def measure_cluster(
    comm: Comm,
    topology: ClusterTopology,
    settings: ClusterSettings,
    on_round: Callable[[int], None] | None = None,
) -> ClusterReport:
    """Measures the ranks of `comm`; the same report on all of them.

    Everything runs `settings.num_rounds` times, interleaved, and all ranks at once; medians count.
    Sizes grow until one takes a second.

    Args:
        comm: the ranks, two at least.
        topology: of them; links inside and between nodes are measured apart.
        settings: what is measured.
        on_round: called with the number of each round when it is over.

    Raises:
        CommunicationError: a rank does not answer.
    """
    bench = _Bench(comm, topology, settings)
    runs = bench.runs()
    seconds = bench.time(runs, settings.num_rounds, on_round)
    links = _link_times(seconds, topology)
    products = tuple(
        _product_times(rows, times, settings)
        for (what, rows), times in seconds.items()
        if what == "products"
    )
    copied = 2 * _COPIED_BYTES[comm.device.type]  # read and written
    copies = [copied / float(np.median(times)) / 1e9 for times in seconds["copy", 0]]
    layer = Spread.of(seconds["layer", 0].max(0).tolist())
    own = json.dumps(_host(comm, topology)).encode()
    hosts = [json.loads(host) for host in gather_bytes(own, comm)]
    cluster = _cluster(links, topology, hosts, settings)
    memory = min(host["memory"] for host in hosts) / 1e9
    cluster = replace(
        cluster,
        teraflops=_rate_of(products) / 1e12,
        memory_gigabytes_per_second=min(copies),
        memory_gigabytes=memory,
        launch_microseconds=max(1e6 * layer.median - 2 * _latency(cluster), 0.0),
    )
    return ClusterReport(
        cluster=_rounded(cluster),
        links=links,
        products=products,
        copy_gigabytes=tuple(copies),
        layer_seconds=layer,
        settings={**asdict(settings), "dtype": str(settings.dtype).removeprefix("torch.")},
    )


class _Bench:
    """What this rank runs. Runs are called by pairs: what, and how much of it."""

    def __init__(self, comm: Comm, topology: ClusterTopology, settings: ClusterSettings) -> None:
        self.comm, self.topology, self.settings = comm, topology, settings
        self.up = self._weights(settings.hidden_size, 2 * settings.intermediate_size)
        self.down = self._weights(settings.intermediate_size, settings.hidden_size)

    def _weights(self, *widths: int) -> Tensor:
        drawn = torch.randn(self.settings.num_experts, *widths, device=self.comm.device)
        drawn /= widths[0] ** 0.5
        return drawn.to(self.settings.dtype)

    def runs(self) -> dict[tuple[Any, int], Run]:
        """All that is timed, warmed up, the same on all ranks."""
        runs: dict[tuple[Any, int], Run] = {}
        for level in levels(self.topology):
            every = Pattern(level=level, kind="all")
            sizes = self._growing(self.settings.sizes, partial(self.exchange, every))
            for pattern in patterns(self.topology, level, self.settings.is_by_pair):
                for size in sizes if pattern.kind == "all" else (sizes[0], sizes[-1]):
                    runs[pattern, size] = self.exchange(pattern, size)
        for rows in self._growing(self.settings.rows, self.products):
            runs["products", rows] = self.products(rows)
        source = torch.ones(_COPIED_BYTES[self.comm.device.type], dtype=torch.uint8)
        source = source.to(self.comm.device)
        target = torch.empty_like(source)
        runs["copy", 0] = lambda: target.copy_(source)
        runs["layer", 0] = self.layer()
        self.time(runs, 1)
        return runs

    def _growing(self, sizes: Sequence[int], make: Callable[[int], Run]) -> list[int]:
        """As many of `sizes`, two at least, as take less than a second on all ranks."""
        kept: list[int] = []
        for size in sizes:
            kept.append(size)
            took = self.time({("warm", size): make(size)}, 2)["warm", size][:, -1].max()
            if took > _MOST_SECONDS / _GROWTH and len(kept) > 1:
                break
        return kept

    def exchange(self, pattern: Pattern, size: int) -> Run:
        """An exchange of `size` bytes of each rank that sends."""
        return make_exchange(self.comm, pattern.num_bytes(self.topology, size))

    def products(self, num_rows: int) -> Run:
        """The products of this rank's experts, as many rows for each."""
        settings, device = self.settings, self.comm.device
        each = -(-num_rows // settings.num_experts)
        counts = torch.full((settings.num_experts,), each, device=device)
        rows = torch.randn(each * settings.num_experts, settings.hidden_size, device=device)
        rows = rows.to(settings.dtype)

        def run() -> None:
            with torch.no_grad():
                grouped_linear(silu_gated(grouped_linear(rows, self.up, counts)), self.down, counts)

        return run

    def layer(self) -> Run:
        """A layer of one token a rank, two ranks a token, and experts that give rows back."""
        size, device = self.comm.size, self.comm.device
        name = "hierarchical" if 1 < self.topology.num_nodes < size else "zero_redundancy"
        dispatcher = make_dispatcher(
            name, comm=self.comm, placement=np.arange(size), num_nodes=self.topology.num_nodes
        )
        hidden = torch.ones(1, _SMALL, device=device)
        ids = torch.tensor([[self.comm.rank, (self.comm.rank + 1) % size]], device=device)
        weights = torch.full((1, 2), 0.5, device=device)

        def run() -> None:
            with torch.no_grad():
                parallel_moe(hidden, ids, weights, lambda rows, counts: rows, dispatcher)

        return run

    def time(
        self,
        runs: Mapping[tuple[Any, int], Run],
        num_rounds: int,
        on_round: Callable[[int], None] | None = None,
    ) -> dict[tuple[Any, int], Float]:
        """Seconds `[ranks, rounds]` of each run, from all ranks ready until each is through."""
        own = np.zeros((len(runs), num_rounds))
        for index in range(num_rounds):
            for number, run in enumerate(runs.values()):
                self.comm.barrier()
                self._finish()
                before = time.perf_counter()
                run()
                self._finish()
                own[number, index] = time.perf_counter() - before
            if on_round is not None:
                on_round(index)
        ranks = [np.frombuffer(data) for data in gather_bytes(own.tobytes(), self.comm)]
        shape = (self.comm.size, len(runs), num_rounds)
        return dict(zip(runs, np.stack(ranks).reshape(shape).swapaxes(0, 1), strict=True))

    def _finish(self) -> None:
        """What was started on a GPU is over."""
        if self.comm.device.type == "cuda":
            torch.cuda.synchronize()


def _link_times(
    seconds: Mapping[tuple[Any, int], Float], topology: ClusterTopology
) -> tuple[LinkTimes, ...]:
    by_pattern: dict[Pattern, list[tuple[int, Spread]]] = {}
    for (what, size), times in seconds.items():
        if isinstance(what, Pattern):
            found = what.most_bytes(topology, size), Spread.of(times.max(0).tolist())
            by_pattern.setdefault(what, []).append(found)
    return tuple(
        LinkTimes(
            pattern=pattern,
            num_bytes=tuple(size for size, _ in found),
            seconds=tuple(spread for _, spread in found),
        )
        for pattern, found in by_pattern.items()
    )


def _rate_of(products: Sequence[ProductTimes]) -> float:
    """FLOP/s of large products, from the line through all."""
    flops = [int(product.teraflops * product.seconds.median * 1e12) for product in products]
    return fit_line(flops, [product.seconds.median for product in products])[1]


def _product_times(rows: int, times: Float, settings: ClusterSettings) -> ProductTimes:
    spread = Spread.of(times.max(0).tolist())
    rows = -(-rows // settings.num_experts) * settings.num_experts
    flops = 2.0 * 3 * settings.hidden_size * settings.intermediate_size * rows
    return ProductTimes(num_rows=rows, seconds=spread, teraflops=flops / spread.median / 1e12)


def _host(comm: Comm, topology: ClusterTopology) -> dict[str, Any]:
    """What this rank is: its device, and the bytes of memory that are its own."""
    if comm.device.type == "cuda":
        device = torch.cuda.get_device_properties(comm.device)
        return {"device": device.name, "memory": device.total_memory}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / topology.ranks_per_node
    return {"device": f"{platform.machine()}, {os.cpu_count()} cores", "memory": memory}


def _cluster(
    links: Sequence[LinkTimes],
    topology: ClusterTopology,
    hosts: Sequence[Mapping[str, Any]],
    settings: ClusterSettings,
) -> Cluster:
    """The links of the cluster, and where they were measured; nothing yet of its devices."""
    figures: dict[str, Any] = {}
    said = ""
    for level, name in (("inside", "inner"), ("between", "outer")):
        found = [link for link in links if link.pattern.level == level]
        if not found:
            said = f"; no links {level} nodes, taken as the others"
            found = list(links)
        alike = [link for link in found if link.pattern.kind != "pair"]
        figures[f"{name}_gigabytes"] = min(link.gigabytes for link in alike)
        figures[f"{name}_microseconds"] = 1e6 * max(link.line[0] for link in alike)
    rates = link_matrix(links, topology) if settings.is_by_pair else np.zeros((0, 0))
    devices = ", ".join(sorted({host["device"] for host in hosts}))
    return Cluster(
        name="measured",
        source=f"c2r bench cluster, {datetime.date.today()}: {topology.num_ranks} ranks on "
        f"{topology.num_nodes} nodes ({devices}), torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.system()} {platform.release()}{said}",
        num_ranks=topology.num_ranks,
        num_nodes=topology.num_nodes,
        teraflops=0.0,
        memory_gigabytes_per_second=0.0,
        memory_gigabytes=0.0,
        launch_microseconds=0.0,
        link_gigabytes=tuple(tuple(map(float, row)) for row in rates),
        **figures,
    )


def _latency(cluster: Cluster) -> float:
    """Microseconds of an exchange that carries nothing, to whatever ranks there are."""
    if cluster.is_nested:
        return cluster.inner_microseconds + cluster.outer_microseconds
    return cluster.outer_microseconds if cluster.num_nodes > 1 else cluster.inner_microseconds


def _rounded(cluster: Cluster) -> Cluster:
    """Four digits of each figure."""
    figures: dict[str, Any] = {
        name: float(f"{value:.4g}")
        for name, value in asdict(cluster).items()
        if isinstance(value, float)
    }
    return replace(cluster, **figures)
