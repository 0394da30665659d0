"""Laps, spreads and the interface's own counters."""

import socket
import sys
import time

import pytest

from c2r.timing import Spread, Stopwatch, interface_bytes, spread_of_ratios


def test_laps_add_up_by_name():
    watch = Stopwatch()
    before = time.perf_counter()
    watch.start()
    for name in ("send", "compute", "send"):
        time.sleep(0.01)
        watch.lap(name)
    elapsed = time.perf_counter() - before
    assert set(watch.seconds) == {"send", "compute"}
    assert watch.seconds["send"] >= 0.02 and watch.seconds["compute"] >= 0.01
    assert sum(watch.seconds.values()) <= elapsed


def test_spread_by_hand():
    assert Spread.of([9, 1, 3, 2, 4]) == Spread(median=3, lower=2, upper=4)
    assert Spread.of([2.0]) == Spread(median=2, lower=2, upper=2)


def test_ratios_are_of_one_round():
    """A round that is ten times slower on both sides does not count."""
    assert spread_of_ratios([1, 10, 2], [2, 20, 4]) == Spread(median=0.5, lower=0.5, upper=0.5)
    with pytest.raises(ValueError, match="longer"):
        spread_of_ratios([1], [1, 2])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts bytes under /sys")
def test_bytes_at_an_interface():
    before = interface_bytes("lo")
    assert before is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
        client.sendall(bytes(10_000))
        received = 0
        while received < 10_000:
            received += len(connection.recv(10_000))
        client.close()
        connection.close()
    after = interface_bytes("lo")
    # A process that opens a connection meanwhile may count a few bytes less: headers without ours.
    assert after[0] - before[0] >= 9_900 and after[1] - before[1] >= 9_900


def test_an_interface_that_does_not_exist():
    assert interface_bytes("nosuch0") is None
