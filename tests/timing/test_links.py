"""Who sends to whom, and the lines and rates that follow, by hand."""

import numpy as np
import pytest

from c2r.plans import ClusterTopology
from c2r.timing import Spread
from c2r.timing.links import LinkTimes, Pattern, fit_line, levels, link_matrix, patterns

NODES = ClusterTopology(num_ranks=4, num_nodes=2)


def test_bytes_by_hand():
    between = Pattern(level="between", kind="all").num_bytes(NODES, 100)
    assert between.tolist() == [[0, 0, 50, 50], [0, 0, 50, 50], [50, 50, 0, 0], [50, 50, 0, 0]]
    inside = Pattern(level="inside", kind="sends", ranks=(1,)).num_bytes(NODES, 100)
    assert inside.tolist() == [[0] * 4, [100, 0, 0, 0], [0] * 4, [0] * 4]
    arriving = Pattern(level="between", kind="receives", ranks=(1,)).num_bytes(NODES, 100)
    assert arriving.tolist() == [[0] * 4, [0] * 4, [0, 50, 0, 0], [0, 50, 0, 0]]
    pair = Pattern(level="between", kind="pair", ranks=(0, 3))
    assert pair.num_bytes(NODES, 7).tolist() == [[0, 0, 0, 7], *[[0] * 4] * 3]
    assert pair.most_bytes(NODES, 7) == 7


def test_levels_are_where_there_are_links():
    assert levels(NODES) == ("inside", "between")
    assert levels(ClusterTopology(num_ranks=4)) == ("inside",)
    assert levels(ClusterTopology(num_ranks=4, num_nodes=4)) == ("between",)
    pairs = {
        level: [p.ranks for p in patterns(NODES, level, True) if p.kind == "pair"]
        for level in levels(NODES)
    }
    assert pairs["inside"] == [(0, 1), (1, 0), (2, 3), (3, 2)]
    assert len(pairs["between"]) == 8


SIZES = (1_000, 10_000, 100_000, 1_000_000)


def test_a_line_gives_latency_and_rate():
    latency, rate = fit_line(SIZES, [1e-4 + size / 2e9 for size in SIZES])
    assert latency == pytest.approx(1e-4) and rate == pytest.approx(2e9)


def test_a_disturbed_size_changes_no_line():
    seconds = [1e-4 + size / 2e9 for size in SIZES]
    seconds[1] *= 5
    latency, rate = fit_line(SIZES, seconds)
    assert latency == pytest.approx(1e-4) and rate == pytest.approx(2e9)


def test_latency_is_never_negative():
    # A token bucket lets the first 100,000 bytes through at once.
    latency, rate = fit_line(SIZES, [1e-4, 1e-4, 1e-4, 9e-3])
    assert latency >= 0 and rate > 0
    assert fit_line((1_000, 1_000_000), [2e-4, 1e-4]) == (0.0, pytest.approx(1e10))


def times(kind, ranks, gigabytes, level="inside"):
    seconds = [size / gigabytes / 1e9 for size in (1000, 2000)]
    return LinkTimes(
        pattern=Pattern(level=level, kind=kind, ranks=ranks),
        num_bytes=(1000, 2000),
        seconds=tuple(Spread.of([second]) for second in seconds),
    )


def test_a_matrix_has_the_rate_of_each_pair():
    two = ClusterTopology(num_ranks=2)
    found = link_matrix(
        [times("all", (), 4.0), times("pair", (0, 1), 4), times("pair", (1, 0), 8)], two
    )
    assert found == pytest.approx(np.array([[0, 4], [8, 0]]))


def test_links_that_are_shared_are_slower_than_alone():
    two = ClusterTopology(num_ranks=2)
    found = link_matrix(
        [times("all", (), 2.0), times("pair", (0, 1), 4), times("pair", (1, 0), 8)], two
    )
    assert found == pytest.approx(np.array([[0, 2], [4, 0]]))
