"""Layer times on emulated hosts with emulated devices, against the time model's prediction.

    python benchmarks/time_model.py RECORDING RESULT.json [RESULT.json ...]

RECORDING is what `c2r bench parallel --save-recording` kept, each RESULT what
`benchmarks/expert_parallel.py --emulate` wrote with that recording. The rate of the links is that
of the command; what the machine adds (latency, copies of rows, which real processors do) is taken
from two cases of each result, `k_fold` and `all_gather`, and every other case is predicted.
Baseline: the measured time.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from harness import finish, print_table

from c2r.plans import contiguous_placement
from c2r.prediction import Cluster, ModelSizes, Phase, Workload
from c2r.prediction.shares import RankShares
from c2r.prediction.time import layer_time
from c2r.timing import Recording

FITTED = ("k_fold", "all_gather")
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
OVERHEAD = 1 - 66 / 1514  # of an Ethernet frame: headers of TCP, IP and Ethernet


def gigabytes_of(command):
    """GB/s of payload on the links that the command limited."""
    number, unit = re.search(r"--rate (\d+)([kmg]bit)", command).groups()
    return float(number) * UNITS[unit] / 8e9 * OVERHEAD


def cluster_of(result):
    """Every rank a host; products at the emulated rate of rows, nothing else yet."""
    settings, size = result["settings"], result["topology"]["num_ranks"]
    flops_per_row = 2 * 3 * settings["hidden_size"] * settings["intermediate_size"]
    return Cluster(
        name="emulated",
        source=result["command"],
        num_ranks=size,
        num_nodes=size,
        inner_gigabytes=1e6,
        inner_microseconds=0.0,
        outer_gigabytes=gigabytes_of(result["command"]),
        outer_microseconds=0.0,
        teraflops=settings["emulated_rows_per_second"] * flops_per_row / 1e12,
        memory_gigabytes_per_second=1e9,
        memory_gigabytes=1.0,
        launch_microseconds=0.0,
    )


def predict(recording, case, settings, cluster):
    """Milliseconds of exchange, of compute, and rows handled on the busiest rank; layers' means."""
    sizes = ModelSizes(
        hidden_size=settings["hidden_size"],
        expert_size=settings["intermediate_size"],
        shared_expert_size=0,
        num_layers=1,
        num_moe_layers=1,
        dense_parameters=0,
    )
    tokens, size = settings["tokens_per_rank"], cluster.num_ranks
    workload = Workload(sizes=sizes, tokens_per_rank=tokens, phase=Phase.TRAINING)
    routing = recording.routings[case["routing"]]
    found = []
    for layer, ids in enumerate(routing.expert_ids[:, : tokens * size]):
        placement = contiguous_placement(recording.num_experts, size)
        if case["is_placed"]:
            placement = recording.placement[layer]
        shares = RankShares.of(placement[ids], ids, np.ones(len(ids)), cluster.topology)
        took = layer_time(shares, cluster, workload, case["dispatcher"], case["num_chunks"])
        handled = tokens * size * (shares.visits.max() + shares.rows.max())
        found.append((took.exchange, took.compute, handled))
    return np.mean(found, axis=0)


def compare(recording, result):
    """A row for each case that is not fitted."""
    settings, cluster = result["settings"], cluster_of(result)
    cases = [
        (
            times["case"],
            1e3 * times["seconds"]["median"],
            *predict(recording, times["case"], settings, cluster),
        )
        for times in result["cases"]
    ]
    # What is over the two parts is a constant of the exchange and a cost of each row handled.
    fitted = [
        (measured - exchange - compute, handled)
        for case, measured, exchange, compute, handled in cases
        if case["name"] in FITTED
    ]
    (over_first, rows_first), (over_second, rows_second) = fitted
    per_row = (over_first + over_second) / (rows_first + rows_second)
    rows = []
    for case, measured, exchange, compute, handled in cases:
        longer, shorter = max(exchange, compute), min(exchange, compute)
        predicted = longer + shorter / case["num_chunks"] + per_row * handled
        rows.append(
            {
                "ranks": cluster.num_ranks,
                "GB/s": round(cluster.outer_gigabytes, 4),
                "case": case["name"],
                "fitted": case["name"] in FITTED,
                "measured_ms": measured,
                "predicted_ms": float(predicted),
                "error": float(predicted / measured - 1),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    args = parser.parse_args()
    recording = Recording.load(args.recording)
    rows = [
        row
        for path in args.results
        for row in compare(recording, json.loads(path.read_text(encoding="utf-8")))
    ]
    print_table(rows)
    errors = [abs(row["error"]) for row in rows if not row["fitted"]]
    figures = {"error_median": float(np.median(errors)), "error_worst": float(max(errors))}
    settings = {"results": [path.name for path in args.results], "recording": args.recording}
    finish("time_model", "measured time of the layer", rows, settings, **figures)


if __name__ == "__main__":
    main()
