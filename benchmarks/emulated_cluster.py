"""Runs a command on emulated hosts: a network namespace per rank, joined by rate-limited links.

    python benchmarks/emulated_cluster.py --ranks 4 --rate 1gbit -- python train.py
    python benchmarks/emulated_cluster.py --nodes 2 --rate 1gbit --inner-rate 10gbit -- COMMAND

Linux, root, `ip` and `tc`; without any of them the ranks run on plain loopback, and that is said.
Each rank gets the environment that torchrun gives, and its own `eth0`. Every link is limited by a
token bucket at both ends, so small that no exchange of a layer slips through it. One rank per node:
all links run at `--rate`. Several: ranks reach the switch of their node at `--inner-rate`, and the
switches reach each other at `--rate`. With `--cores` a cgroup (version 1 or 2) holds every rank to
its share of processor time: none computes on cores that another's exchange needs.

Rank 0 writes to our stdout; all else goes to stderr, after the rank's number. When a rank fails or
the time is up, the others are stopped. Namespaces, and with them all links, are removed whatever
happens; what a killed run left behind, the next one removes.
"""

import argparse
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "c2r-emulated"
_SEGMENT_SECONDS = 0.15e-3  # timers are later than two of them at times, and the link would idle
_LEAST_SEGMENT_BYTES, _MOST_SEGMENT_BYTES = 8 * 1024, 64 * 1024  # single frames are too slow
_QUEUE = "200ms"
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Hosts to emulate. Rates are words of `tc` (`1gbit`); None is no limit.

    Ranks are numbered node by node. `rate` is that of the links between nodes, `inner_rate` that
    of the links inside a node that has several ranks.
    """

    num_ranks: int
    num_nodes: int
    rate: str | None = None
    inner_rate: str | None = None

    def __post_init__(self):
        if self.num_ranks < 1 or self.num_nodes < 1 or self.num_ranks % self.num_nodes:
            raise ValueError(f"{self.num_ranks} ranks do not split evenly over {self.num_nodes}")
        if self.num_ranks > 250:
            raise ValueError(f"{self.num_ranks} ranks; one network holds at most 250")

    @property
    def ranks_per_node(self):
        return self.num_ranks // self.num_nodes

    def environment(self, rank, address, port, interface):
        """What torchrun sets, and the interface that gloo is to use."""
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.num_ranks),
            "LOCAL_RANK": str(rank % self.ranks_per_node),
            "LOCAL_WORLD_SIZE": str(self.ranks_per_node),
            "GROUP_RANK": str(rank // self.ranks_per_node),
            "GROUP_WORLD_SIZE": str(self.num_nodes),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": interface,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # Addresses have no names here, of which c10d warns at every connection.
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosts:
    """Hosts that are up. `prefixes` are the words that run a command on each rank's host."""

    cluster: Cluster
    prefixes: tuple[tuple[str, ...], ...]
    environments: tuple[dict[str, str], ...]
    limit: str

    def traffic(self, rank):
        """Bytes `(sent, received)` at the interface of `rank` since the hosts came up."""
        interface = self.environments[rank]["GLOO_SOCKET_IFNAME"]
        folder = Path("/sys/class/net", interface, "statistics")
        files = [folder / "tx_bytes", folder / "rx_bytes"]
        sent, received = _output(*self.prefixes[rank], "cat", *map(str, files)).split()
        return int(sent), int(received)

    def run(self, command, timeout=None, nice=0, core_groups=()):
        """Runs `command` on every host and gives its exit status.

        The status is that of the rank that failed first, 124 where the time is up, else 0. On a
        machine that others use too, a negative `nice` gives the ranks precedence. `core_groups`
        are the folders of cgroups to run in, one for each rank, where there are any.
        """
        with ExitStack() as cleanup:
            processes = []
            cleanup.callback(_stop, processes)
            readers = []
            for rank, prefix in enumerate(self.prefixes):
                process = subprocess.Popen(
                    [*prefix, *command],
                    env={**os.environ, **self.environments[rank]},
                    stdin=subprocess.DEVNULL,
                    stdout=None if rank == 0 else subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                processes.append(process)
                if core_groups:
                    (core_groups[rank] / "cgroup.procs").write_text(str(process.pid))
                if nice:
                    _set_priority(process.pid, nice)
                readers += _forward(rank, process)
            status = _wait(processes, timeout)
            _stop(processes)
            for reader in readers:
                reader.join(timeout=_GRACE_SECONDS)
        return status


@contextmanager
def hosts_up(cluster):
    """The hosts of `cluster`, taken down at the end of the block."""
    missing = _missing()
    if missing:
        print(f"{missing}: plain loopback, no limit on rates", file=sys.stderr)
        port = _free_port()
        ranks = range(cluster.num_ranks)
        yield Hosts(
            cluster=cluster,
            prefixes=((),) * cluster.num_ranks,
            environments=tuple(cluster.environment(r, "127.0.0.1", port, "lo") for r in ranks),
            limit="loopback, unlimited",
        )
        return
    _remove_leftovers()
    network = _Network(cluster, f"{_PREFIX}-{os.getpid()}")
    try:
        network.build()
        yield network.hosts()
    finally:
        network.remove()


class _Network:
    """Namespaces and links: one namespace per rank, and one that holds the switches."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.switch = f"{name}-switch"
        self.ranks = [f"{name}-{rank}" for rank in range(cluster.num_ranks)]

    def build(self):
        for namespace in (self.switch, *self.ranks):
            _call("ip", "netns", "add", namespace)
            _call("ip", "-n", namespace, "link", "set", "lo", "up")
        self._add_bridge("core")
        cluster = self.cluster
        alone = cluster.num_ranks == cluster.num_nodes
        if not alone:
            for node in range(cluster.num_nodes):
                self._add_node(node)
        for rank, namespace in enumerate(self.ranks):
            bridge = "core" if alone else f"node{rank // cluster.ranks_per_node}"
            rate = cluster.rate if alone else cluster.inner_rate
            peer = f"rank{rank}"
            _call(
                *("ip", "-n", self.switch, "link", "add", peer, "type", "veth"),
                *("peer", "name", "eth0", "netns", namespace),
            )
            _call("ip", "-n", namespace, "addr", "add", f"{_address(rank)}/24", "dev", "eth0")
            self._bring_up(self.switch, peer, rate, bridge)
            self._bring_up(namespace, "eth0", rate)

    def _add_bridge(self, name):
        _call("ip", "-n", self.switch, "link", "add", name, "type", "bridge")
        _call("ip", "-n", self.switch, "link", "set", name, "up")

    def _add_node(self, node):
        self._add_bridge(f"node{node}")
        up, down = f"up{node}", f"down{node}"
        _call("ip", "-n", self.switch, "link", "add", up, "type", "veth", "peer", "name", down)
        self._bring_up(self.switch, up, self.cluster.rate, f"node{node}")
        self._bring_up(self.switch, down, self.cluster.rate, "core")

    def _bring_up(self, namespace, interface, rate, bridge=None):
        if bridge is not None:
            _call("ip", "-n", namespace, "link", "set", interface, "master", bridge)
        if rate is not None:
            _call(
                *("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf"),
                *("rate", rate, "burst", str(2 * _segment_bytes(rate)), "latency", _QUEUE),
            )
            _call(
                *("ip", "-n", namespace, "link", "set", "dev", interface),
                *("gso_max_size", str(_segment_bytes(rate))),
            )
        _call("ip", "-n", namespace, "link", "set", interface, "up")

    def hosts(self):
        cluster = self.cluster
        ranks = range(cluster.num_ranks)
        inner = "" if cluster.num_ranks == cluster.num_nodes else f", {cluster.inner_rate} inside"
        return Hosts(
            cluster=cluster,
            prefixes=tuple(("ip", "netns", "exec", namespace) for namespace in self.ranks),
            environments=tuple(cluster.environment(r, _address(0), 29500, "eth0") for r in ranks),
            limit=f"{cluster.num_nodes} nodes, {cluster.rate or 'unlimited'} between{inner}",
        )

    def remove(self):
        for namespace in (*self.ranks, self.switch):
            _remove_namespace(namespace)


def _segment_bytes(rate):
    """The most that the kernel hands to a link at once; two of them pass after it was idle."""
    segment = int(bytes_per_second(rate) * _SEGMENT_SECONDS)
    return min(max(segment, _LEAST_SEGMENT_BYTES), _MOST_SEGMENT_BYTES)


def bytes_per_second(rate):
    """What `tc` means by a rate, as `100mbit`."""
    found = re.fullmatch(r"([\d.]+)([kmg]?)bit", rate)
    if found is None:
        raise RuntimeError(f"{rate} is no rate of `tc`; write 100mbit or 1gbit")
    number, unit = found.groups()
    return float(number) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[unit] / 8


def _missing():
    """Why no network can be emulated, or None."""
    if platform.system() != "Linux":
        return "not Linux"
    if os.geteuid() != 0:
        return "not root"
    absent = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"no {' or '.join(absent)} (install iproute2)" if absent else None


def _remove_leftovers():
    """Removes the namespaces of runs whose process is gone."""
    for line in _output("ip", "netns", "list").splitlines():
        namespace = line.split()[0] if line else ""
        owner = namespace.removeprefix(f"{_PREFIX}-").partition("-")[0]
        is_ours = namespace.startswith(f"{_PREFIX}-") and owner.isdigit()
        if is_ours and not Path("/proc", owner).exists():
            _remove_namespace(namespace)


def _remove_namespace(namespace):
    """Ends what still runs inside, and removes the namespace with its links; may be absent."""
    inside = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
    )
    for pid in inside.stdout.split():
        _signal(os.kill, int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _set_priority(pid, nice):
    """Every rank is a session, and Linux weighs sessions before it weighs their processes."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    autogroup = Path("/proc", str(pid), "autogroup")
    if autogroup.exists():
        autogroup.write_text(str(nice))


def _forward(rank, process):
    """Threads that copy what a rank writes to our stderr, after its number."""

    def copy(stream):
        with stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip("\n")
                print(f"[{rank}] {text}", file=sys.stderr, flush=True)

    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    threads = [threading.Thread(target=copy, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    return threads


def _wait(processes, timeout):
    deadline = None if timeout is None else time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        for rank, process in enumerate(processes):
            if process.poll():
                return _failed(rank, process.returncode)
        if deadline is not None and time.monotonic() > deadline:
            running = [rank for rank, process in enumerate(processes) if process.poll() is None]
            print(f"time is up after {timeout:g} s; ranks {running} still ran", file=sys.stderr)
            return 124
        time.sleep(0.05)
    for rank, process in enumerate(processes):
        if process.returncode:
            return _failed(rank, process.returncode)
    return 0


def _failed(rank, code):
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    print(f"rank {rank} {how}; stopping the others", file=sys.stderr)
    return code if code > 0 else 128 - code


def _stop(processes):
    """Ends the ranks and what they started: asks first, then insists."""
    for process in processes:
        if process.poll() is None:
            _signal(os.killpg, process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(os.killpg, process.pid, signal.SIGKILL)
            process.wait()


def _signal(send, target, number):
    try:
        send(target, number)
    except ProcessLookupError:
        return  # It ended in the meantime.


def _address(rank):
    return f"10.77.0.{rank + 1}"


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _call(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")


def add_arguments(parser):
    """The options that describe a cluster."""
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--nodes", type=int, help="default: one per rank")
    parser.add_argument("--rate", help="of the links between nodes, as tc writes it: 1gbit")
    parser.add_argument("--inner-rate", help="of the links inside a node")
    parser.add_argument("--cores", type=float, help="of each rank; default: all ranks share all")
    parser.add_argument("--timeout", type=float, default=480.0, help="seconds")
    parser.add_argument("--nice", type=int, default=0, help="-15: precedence over other programs")


def cluster_of(args):
    """The cluster that parsed options describe."""
    return Cluster(
        num_ranks=args.ranks,
        num_nodes=args.nodes or args.ranks,
        rate=args.rate,
        inner_rate=args.inner_rate,
    )


def exit_when_stopped():
    """Ends the process as an exception does when it is told to stop, so that hosts are taken down.

    SIGINT too: a shell starts background jobs with it ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))


def main():
    from core_groups import core_groups

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    exit_when_stopped()
    with core_groups(args.ranks, args.cores) as groups, hosts_up(cluster_of(args)) as hosts:
        print(f"{args.ranks} ranks: {hosts.limit}; {groups.limit}", file=sys.stderr)
        status = hosts.run(args.command, args.timeout, args.nice, groups.folders)
        for rank in range(args.ranks):
            sent, received = hosts.traffic(rank)
            print(f"rank {rank}: {sent:,} bytes sent, {received:,} received", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
