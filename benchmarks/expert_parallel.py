"""What an expert-parallel MoE layer takes with each dispatcher, on emulated hosts.

    python benchmarks/expert_parallel.py --rate 1gbit --chunks 2
    python benchmarks/expert_parallel.py --nodes 2 --rate 400mbit --inner-rate 4gbit

Brings hosts up (see `emulated_cluster.py`), runs `c2r bench parallel` on them with every option
that is not about hosts (see its `--help`), and writes the figures to `--out`. Baseline: k_fold, one
row per token and expert both ways, as MegaBlocks dispatches. Prints a table and a JSON line.
"""

import argparse
import json
import sys
from pathlib import Path

from emulated_cluster import add_arguments, cluster_of, exit_when_stopped, hosts_up
from harness import commit, machine


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("expert_parallel.json"))
    args, options = parser.parse_known_args()
    exit_when_stopped()
    command = [sys.executable, "-m", "c2r", "bench", "parallel", "--out", str(args.out)]
    with hosts_up(cluster_of(args)) as hosts:
        print(f"{args.ranks} ranks: {hosts.limit}", file=sys.stderr)
        status = hosts.run([*command, *options], args.timeout, args.nice)
        limit = hosts.limit
    if status:
        return status
    result = json.loads(args.out.read_text())
    result["network"] = limit
    result["command"] = " ".join(["python", "benchmarks/expert_parallel.py", *sys.argv[1:]])
    result["machine"] |= machine()
    result["commit"] = commit()
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
