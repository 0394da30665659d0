"""Exchanges whose time tells the bandwidth and latency of links."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from c2r.parallel import Comm, SplitSizes
from c2r.plans import ClusterTopology
from c2r.timing.clocks import Spread
from c2r.types import Float, Int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """Who sends to whom.

    Attributes:
        level: `"inside"` nodes or `"between"` them.
        kind: `"all"` to all their peers, one rank `"sends"` to all its peers or `"receives"` from
            them, or a `"pair"`: one rank to one.
        ranks: the rank of `sends` and `receives`; sender and receiver of a `pair`.
    """

    level: str
    kind: str
    ranks: tuple[int, ...] = ()

    def num_bytes(self, topology: ClusterTopology, size: int) -> Int:
        """`[ranks, ranks]` bytes from each rank (row) to each, `size` of a rank that sends."""
        nodes = np.arange(topology.num_ranks) // topology.ranks_per_node
        peers = (nodes[:, None] == nodes) == (self.level == "inside")
        np.fill_diagonal(peers, False)
        each = np.where(peers, max(size // max(int(peers[0].sum()), 1), 1), 0)
        if self.kind == "pair":
            each = np.zeros_like(each)
            each[self.ranks] = size
        elif self.kind == "sends":
            each[np.arange(len(each)) != self.ranks] = 0
        elif self.kind == "receives":
            each[:, np.arange(len(each)) != self.ranks] = 0
        return each.astype(np.int64)

    def most_bytes(self, topology: ClusterTopology, size: int) -> int:
        """What the rank that sends or receives most does."""
        each = self.num_bytes(topology, size)
        return int(max(each.sum(0).max(), each.sum(1).max()))


def levels(topology: ClusterTopology) -> tuple[str, ...]:
    """Where there are links: `"inside"` nodes of several ranks, `"between"` several nodes."""
    found = {"inside": topology.ranks_per_node > 1, "between": topology.num_nodes > 1}
    return tuple(name for name, is_there in found.items() if is_there)


def patterns(topology: ClusterTopology, level: str, is_by_pair: bool) -> Iterator[Pattern]:
    """All to all, then each rank in both directions, then each pair where asked for."""
    yield Pattern(level=level, kind="all")
    for rank in range(topology.num_ranks):
        yield Pattern(level=level, kind="sends", ranks=(rank,))
        yield Pattern(level=level, kind="receives", ranks=(rank,))
    per_node = topology.ranks_per_node
    for pair in itertools.permutations(range(topology.num_ranks), 2):
        if is_by_pair and (pair[0] // per_node == pair[1] // per_node) == (level == "inside"):
            yield Pattern(level=level, kind="pair", ranks=pair)


def make_exchange(comm: Comm, num_bytes: Int) -> Callable[[], Any]:
    """One exchange of so many bytes `[ranks, ranks]`, from row to column."""
    sizes = SplitSizes(
        send=num_bytes[comm.rank].tolist(),
        receive=num_bytes[:, comm.rank].tolist(),
        what="an exchange that is timed",
    )
    sent = torch.zeros(sum(sizes.send), dtype=torch.uint8, device=comm.device)
    return lambda: comm.exchange(sent, sizes).wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkTimes:
    """What one pattern took.

    Attributes:
        pattern: who sent to whom.
        num_bytes: of the rank that sends or receives most, by size.
        seconds: until the last rank is through, by size.
    """

    pattern: Pattern
    num_bytes: tuple[int, ...]
    seconds: tuple[Spread, ...]

    @property
    def line(self) -> tuple[float, float]:
        """Seconds of an exchange that carries nothing, and bytes per second: see `fit_line`."""
        return fit_line(self.num_bytes, [spread.median for spread in self.seconds])

    @property
    def gigabytes(self) -> float:
        """GB/s of the rank that sends or receives most."""
        return self.line[1] / 1e9


def fit_line(num_bytes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency in seconds, not negative, and bytes per second of `seconds` = latency + bytes / rate.

    The line of least absolute relative error, so that small exchanges tell the latency, large ones
    the rate, and a single disturbed one nothing. Such a line passes through two of the points, or
    through one and the origin: all are tried.
    """
    points = [(0.0, 0.0), *zip(map(float, num_bytes), seconds, strict=True)]
    sizes, times = np.array(points[1:]).T
    lines = []
    for (one, early), (other, late) in itertools.combinations(points, 2):
        slope = (late - early) / (other - one)
        latency = early - slope * one
        if slope > 0 and latency >= -1e-12:
            error = float(np.abs((latency + slope * sizes) / times - 1).sum())
            lines.append((error, max(latency, 0.0), 1 / slope))
    _, latency, rate = min(lines)
    return latency, rate


def link_matrix(times: Sequence[LinkTimes], topology: ClusterTopology) -> Float:
    """`[ranks, ranks]` GB/s from rank to rank, from the pairs of `times`.

    A pair alone has the whole link. Where all ranks at once take longer than their pairs add up
    to, for they share links, all rates of the level are lowered by that.
    """
    rates = np.zeros((topology.num_ranks, topology.num_ranks))
    for level in levels(topology):
        found = [each for each in times if each.pattern.level == level]
        pairs = [each for each in found if each.pattern.kind == "pair"]
        (together,) = (each for each in found if each.pattern.kind == "all")
        own = np.zeros_like(rates)
        for each in pairs:
            own[each.pattern.ranks] = each.gigabytes
        took = np.divide(1.0, own, out=np.zeros_like(own), where=own > 0)
        peers = np.count_nonzero(own[0])
        alone = max(took.sum(0).max(), took.sum(1).max()) / peers
        rates += own * min(1.0, alone * together.gigabytes)
    return rates
