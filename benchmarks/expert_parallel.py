"""What an expert-parallel MoE layer takes with each dispatcher, on emulated hosts.

    python benchmarks/expert_parallel.py --rate 1gbit --device emulated --chunks 2
    python benchmarks/expert_parallel.py --nodes 2 --rate 400mbit --inner-rate 4gbit --cores 0.45

Brings hosts up (see `emulated_cluster.py`), runs `c2r bench parallel` on them with every option
that is not about hosts (see its `--help`), and writes the figures to `--out`. Baseline: k_fold, one
row per token and expert both ways, as MegaBlocks dispatches. Prints a table and a JSON line.

Where the links are limited, `c2r bench parallel` is told the cluster: experts are placed for it,
and times predicted. Its links are those of the options; an exchange of nothing and a copy of a row
are done by real processors, and take what `time_model.py` fitted on this machine.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from core_groups import core_groups
from emulated_cluster import (
    add_arguments,
    bytes_per_second,
    cluster_of,
    exit_when_stopped,
    hosts_up,
)
from harness import commit, machine

from c2r.prediction import find_cluster

PAYLOAD = 1 - 66 / 1514  # of an Ethernet frame: headers of TCP, IP and Ethernet


def described(hosts, args):
    """The emulated cluster, as `--cluster` takes it; None where nothing limits the links."""
    if hosts.rate is None:
        return None
    per_node = hosts.ranks_per_node
    outer, inner = (
        bytes_per_second(rate or "1000gbit") * PAYLOAD / 1e9
        for rate in (hosts.rate, hosts.inner_rate)
    )
    return replace(
        find_cluster("hosts-4-10g"),
        name="emulated",
        source=f"{hosts.num_nodes} emulated nodes, {hosts.rate} between them",
        num_ranks=hosts.num_ranks,
        num_nodes=hosts.num_nodes,
        inner_gigabytes=inner,
        inner_microseconds=args.exchange_microseconds,
        outer_gigabytes=outer / per_node,
        is_outer_shared=True,
        outer_microseconds=args.exchange_microseconds,
        teraflops=args.teraflops,
        memory_gigabytes_per_second=args.copy_gigabytes,
    )


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--teraflops", type=float, default=0.1, help="of a rank's device")
    parser.add_argument("--exchange-microseconds", type=float, default=500.0)
    parser.add_argument("--copy-gigabytes", type=float, default=2.0, help="a second")
    parser.add_argument("--out", type=Path, default=Path("expert_parallel.json"))
    return parser.parse_known_args()


def main():
    args, options = parse_arguments()
    exit_when_stopped()
    command = [sys.executable, "-m", "c2r", "bench", "parallel", "--force", "--out"]
    command += [str(args.out), *options]
    with (
        TemporaryDirectory() as folder,
        core_groups(args.ranks, args.cores) as groups,
        hosts_up(cluster_of(args)) as hosts,
    ):
        cluster = described(hosts.cluster, args)
        if cluster is not None and "--cluster" not in options:
            path = Path(folder, "cluster.yaml")
            cluster.save(path)
            command += ["--cluster", str(path)]
        print(f"{args.ranks} ranks: {hosts.limit}; {groups.limit}", file=sys.stderr)
        status = hosts.run(command, args.timeout, args.nice, groups.folders)
        limits = {"network": hosts.limit, "cores": groups.limit}
    if status:
        return status
    result = json.loads(args.out.read_text()) | limits
    result["command"] = " ".join(["python", "benchmarks/expert_parallel.py", *sys.argv[1:]])
    result["machine"] |= machine()
    result["commit"] = commit()
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
