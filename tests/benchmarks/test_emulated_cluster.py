"""Emulated hosts: what ranks see, how failures end, and that nothing stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import core_groups as core_groups_module
from benchmarks import emulated_cluster
from benchmarks.core_groups import core_groups
from benchmarks.emulated_cluster import Cluster, hosts_up

SCRIPT = Path(emulated_cluster.__file__)
PYTHON = (sys.executable, "-c")

needs_root = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or shutil.which("ip") is None
    or shutil.which("tc") is None,
    reason="needs Linux, root, ip and tc",
)

RECEIVE = """
import os, socket
if os.environ["RANK"] == "0":
    with socket.create_server((os.environ["MASTER_ADDR"], 29400)) as server:
        connection, _ = server.accept()
        total = 0
        while data := connection.recv(1 << 16):
            total += len(data)
        print(total)
else:
    import time
    for _ in range(100):
        try:
            connection = socket.create_connection((os.environ["MASTER_ADDR"], 29400))
            break
        except OSError:
            time.sleep(0.1)
    connection.sendall(bytes(1_000_000))
"""


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


def namespaces_of(pid):
    return {name for name in namespaces() if name.startswith(f"c2r-emulated-{pid}-")}


def started(*command):
    """The script running `command` on two hosts, once the hosts are up."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--ranks", "2", "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    assert len(namespaces_of(process.pid)) == 3
    return process


@needs_root
def test_ranks_have_hosts_of_their_own(capfd):
    words = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
    script = (
        "import os, socket; "
        f"print(*(os.environ[word] for word in {words}), "
        "*sorted(name for _, name in socket.if_nameindex()))"
    )
    cluster = Cluster(num_ranks=4, num_nodes=2, rate="1gbit", inner_rate="10gbit")
    with hosts_up(cluster) as hosts:
        assert hosts.run([*PYTHON, script], timeout=30) == 0
    out, err = capfd.readouterr()
    assert out == "0 4 0 2 0 10.77.0.1 eth0 lo\n"
    assert sorted(err.splitlines()) == [
        "[1] 1 4 1 2 0 10.77.0.1 eth0 lo",
        "[2] 2 4 0 2 1 10.77.0.1 eth0 lo",
        "[3] 3 4 1 2 1 10.77.0.1 eth0 lo",
    ]


@needs_root
@pytest.mark.parametrize(
    "cluster",
    [
        Cluster(num_ranks=2, num_nodes=2, rate="8mbit"),
        Cluster(num_ranks=2, num_nodes=1, inner_rate="8mbit"),
    ],
)
def test_links_keep_to_their_rate_and_count_their_bytes(capfd, cluster):
    before = time.monotonic()
    with hosts_up(cluster) as hosts:
        assert hosts.run([*PYTHON, RECEIVE], timeout=30) == 0
        sent, received = hosts.traffic(1)[0], hosts.traffic(0)[1]
    seconds = time.monotonic() - before
    assert capfd.readouterr().out == "1000000\n"
    assert seconds > 0.9  # a slower machine only takes longer
    assert 1_000_000 < sent < 1_050_000
    assert 1_000_000 < received < 1_050_000


SPIN = """
import time
started = time.monotonic()
while time.monotonic() < started + 0.5:
    pass
print(time.process_time())
"""


@needs_root
def test_a_rank_is_held_to_its_cores(capfd):
    with core_groups(1, 0.2) as groups, hosts_up(Cluster(num_ranks=1, num_nodes=1)) as hosts:
        if not groups.folders:
            pytest.skip(groups.limit)
        assert hosts.run([*PYTHON, SPIN], 30, 0, groups.folders) == 0
        assert groups.limit.startswith("0.2 cores a rank, by cgroup version ")
    assert float(capfd.readouterr().out) < 0.5 * 0.5
    assert not any(folder.exists() for folder in groups.folders)


def test_where_no_cgroup_can_be_made_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(core_groups_module, "_MOUNT", tmp_path / "none")
    with core_groups(2, 0.5) as groups:
        assert groups.folders == () and "no cgroup could be made" in groups.limit


@needs_root
def test_only_the_links_between_nodes_are_slow(capfd):
    cluster = Cluster(num_ranks=2, num_nodes=2, rate="8mbit", inner_rate="1gbit")
    with hosts_up(cluster) as hosts:
        assert hosts.limit == "2 nodes, 8mbit between"
    cluster = Cluster(num_ranks=4, num_nodes=2, rate="8mbit", inner_rate="1gbit")
    with hosts_up(cluster) as hosts:
        shown = [
            subprocess.run(
                [*hosts.prefixes[0][:3], namespace, "tc", "qdisc"], capture_output=True, text=True
            ).stdout
            for namespace in (f"c2r-emulated-{os.getpid()}-switch", hosts.prefixes[3][3])
        ]
    rates = [
        sorted(line.split(" rate ")[1].split()[0] for line in text.splitlines() if "tbf" in line)
        for text in shown
    ]
    assert rates == [["1Gbit"] * 4 + ["8Mbit"] * 4, ["1Gbit"]]


@needs_root
def test_a_rank_that_fails_ends_the_others(capfd):
    script = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('out of luck')\n"
    with hosts_up(Cluster(num_ranks=3, num_nodes=3)) as hosts:
        before = time.monotonic()
        assert hosts.run([*PYTHON, script + "time.sleep(60)"]) == 1
        assert time.monotonic() - before < 30
    err = capfd.readouterr().err.splitlines()
    assert "[1] out of luck" in err
    assert "rank 1 ended with status 1; stopping the others" in err
    assert not namespaces_of(os.getpid())


@needs_root
def test_a_rank_that_hangs_is_stopped(capfd):
    with hosts_up(Cluster(num_ranks=2, num_nodes=2)) as hosts:
        script = "import os, time; time.sleep(60 * int(os.environ['RANK']))"
        assert hosts.run([*PYTHON, script], timeout=1) == 124
    assert "time is up after 1 s; ranks [1] still ran" in capfd.readouterr().err


@needs_root
def test_hosts_go_when_the_block_raises():
    with pytest.raises(KeyError), hosts_up(Cluster(num_ranks=2, num_nodes=2)):
        assert len(namespaces_of(os.getpid())) == 3
        raise KeyError
    assert not namespaces_of(os.getpid())


@needs_root
def test_hosts_go_when_they_cannot_be_built():
    with (
        pytest.raises(RuntimeError, match="warp9 is no rate"),
        hosts_up(Cluster(num_ranks=2, num_nodes=2, rate="warp9")),
    ):
        pass
    assert not namespaces_of(os.getpid())


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hosts_go_when_we_are_stopped(number):
    process = started(*PYTHON, "import time; print('ready', flush=True); time.sleep(60)")
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode not in (0, None)
    assert not namespaces_of(process.pid)


@needs_root
def test_the_next_run_removes_what_a_killed_one_left():
    process = started(*PYTHON, "import time; print('ready', flush=True); time.sleep(60)")
    process.kill()
    process.wait()
    assert len(namespaces_of(process.pid)) == 3
    with hosts_up(Cluster(num_ranks=1, num_nodes=1)):
        assert not namespaces_of(process.pid)
    process.communicate(timeout=20)


def test_without_root_the_ranks_share_the_loopback(capfd, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    cluster = Cluster(num_ranks=2, num_nodes=2, rate="1gbit")
    with hosts_up(cluster) as hosts:
        assert hosts.limit == "loopback, unlimited"
        script = "import os; print(os.environ['MASTER_ADDR'], os.environ['GLOO_SOCKET_IFNAME'])"
        assert hosts.run([*PYTHON, script], timeout=30) == 0
    out, err = capfd.readouterr()
    assert out == "127.0.0.1 lo\n"
    assert err.startswith("not root: plain loopback, no limit on rates\n")


@pytest.mark.parametrize("ranks, nodes", [(4, 3), (0, 1), (2, 0)])
def test_ranks_must_split_over_nodes(ranks, nodes):
    with pytest.raises(ValueError, match="split evenly"):
        Cluster(num_ranks=ranks, num_nodes=nodes)
