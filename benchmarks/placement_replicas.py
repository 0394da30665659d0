"""What replicas save: copies per token with a quarter more expert slots per rank, on real routing.

    python benchmarks/placement_replicas.py

The embedded model is profiled on the first halves of its held-out texts; the baseline is the same
placement without replicas, with and without a bound on rank load. Load is that of the busiest rank
over the mean. Held-out columns are the second halves. Prints a table and a JSON line.
"""

import argparse
import time

from embedded import mean_of, profile_halves
from harness import finish, print_table

from c2r.planning import make_plan
from c2r.prediction import predict_traffic


def compare(calibration, heldout, num_ranks, max_load, extra):
    replicas = round(calibration.num_experts / num_ranks * extra)
    started = time.perf_counter()
    plain = make_plan(calibration, num_ranks, max_load=max_load)
    seconds = time.perf_counter() - started
    replicated = make_plan(calibration, num_ranks, max_load=max_load, replicas=replicas)
    rows = []
    reports = [
        predict_traffic(text, plan)
        for text in (calibration, heldout)
        for plan in (plain, replicated)
    ]
    for index, (before, after, before_heldout, after_heldout) in enumerate(
        zip(*(report.layers for report in reports), strict=True)
    ):
        rows.append(
            {
                "ranks": num_ranks,
                "max_load": max_load or "none",
                "layer": index,
                "copies": before.copies_placed,
                "replicated": after.copies_placed,
                "cut": 1 - after.copies_placed / before.copies_placed,
                "load": before.rank_load_max_over_mean,
                "replicated_load": after.rank_load_max_over_mean,
                "heldout_cut": 1 - after_heldout.copies_placed / before_heldout.copies_placed,
                "heldout_load": before_heldout.rank_load_max_over_mean,
                "heldout_replicated_load": after_heldout.rank_load_max_over_mean,
            }
        )
    return rows, time.perf_counter() - started - 2 * seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--extra", type=float, default=0.25)
    parser.add_argument("--max-load", type=float, default=1.1)
    parser.add_argument("--tokens", type=int, default=204_800)
    args = parser.parse_args()
    calibration, heldout = profile_halves(args.tokens)
    rows, seconds = [], 0.0
    for num_ranks in args.ranks:
        for max_load in (None, args.max_load):
            found, took = compare(calibration, heldout, num_ranks, max_load, args.extra)
            rows += found
            seconds += took
    print_table(rows)
    keys = ("copies", "replicated", "cut", "load", "replicated_load", "heldout_cut")
    figures = {
        "means": [
            {"ranks": num_ranks, "max_load": bound}
            | mean_of([r for r in rows if (r["ranks"], r["max_load"]) == (num_ranks, bound)], keys)
            for num_ranks in args.ranks
            for bound in ("none", args.max_load)
        ],
        "cut_range": [round(pick(row["cut"] for row in rows), 4) for pick in (min, max)],
        "layers_with_more_load": sum(row["replicated_load"] > row["load"] + 1e-9 for row in rows),
        "replication_seconds": round(seconds, 1),
    }
    baseline = "the same placement without replicas"
    settings = vars(args) | {"calibration_tokens": calibration.num_tokens}
    finish("placement_replicas", baseline, rows, settings, **figures)


if __name__ == "__main__":
    main()
