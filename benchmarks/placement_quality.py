"""How good a placement is: copies per token against long mt-kahypar runs, on real routing sets.

    python benchmarks/placement_quality.py

The embedded model is profiled on the first halves of its held-out texts. The baseline is the best
of 20 mt-kahypar runs of its highest quality preset with five v-cycles, on all routing sets, with
sizes repaired where ranks came out uneven. The same table tells what a bound on rank load costs,
and how the copies hold on the second halves. Prints a table and a JSON line.
"""

import argparse
import time

import numpy as np
from embedded import mean_of, profile_halves
from harness import finish, print_table

from c2r.errors import PlanError
from c2r.planning import PlacementOptions, place_experts
from c2r.planning.placement.balance import repair_sizes
from c2r.planning.placement.hypergraph import pair_weights, start_mtkahypar
from c2r.plans import (
    ClusterTopology,
    contiguous_placement,
    load_max_over_mean,
    mean_copies,
    rank_loads,
)

COLUMNS = (
    "ranks",
    "layer",
    "contiguous",
    "kahypar",
    "ours",
    "ratio",
    "heldout_ratio",
    "load",
    "bounded",
    "bounded_load",
)


def long_kahypar_run(sets, counts, num_experts, num_ranks, seed):
    mtkahypar, initializer = start_mtkahypar()
    mtkahypar.set_seed(seed)
    context = initializer.context_from_preset(mtkahypar.PresetType.HIGHEST_QUALITY)
    context.logging = False
    context.num_vcycles = 5
    context.set_partitioning_parameters(num_ranks, 0.0, mtkahypar.Objective.KM1)
    hypergraph = initializer.create_hypergraph(
        context, num_experts, len(sets), sets.tolist(), [1] * num_experts, counts.tolist()
    )
    partition = np.array(hypergraph.partition(context).get_partition(), dtype=np.int64)
    return repair_sizes(partition, num_ranks, pair_weights(sets, counts, num_experts))


def compare(layer, heldout, num_ranks, args):
    sets, counts = layer.routing_sets()
    topology = ClusterTopology(num_ranks=num_ranks)

    def copies(placement):
        return mean_copies(sets, counts, placement)

    def load(placement):
        return load_max_over_mean(rank_loads(layer.load, placement, num_ranks))

    baseline = []
    started = time.perf_counter()
    ours = place_experts(sets, counts, layer.load, topology, PlacementOptions())
    seconds = time.perf_counter() - started
    for seed in range(args.runs):
        baseline.append(copies(long_kahypar_run(sets, counts, layer.num_experts, num_ranks, seed)))
    kahypar_seconds = time.perf_counter() - started - seconds
    try:
        bounded = place_experts(
            sets, counts, layer.load, topology, PlacementOptions(max_load=args.max_load)
        )
    except PlanError as error:
        bounded = None
        print(error)
    return {
        "contiguous": copies(contiguous_placement(layer.num_experts, num_ranks)),
        "kahypar": min(baseline),
        "ours": copies(ours),
        "ratio": copies(ours) / min(baseline),
        "heldout_ratio": mean_copies(*heldout.routing_sets(), ours) / copies(ours),
        "load": load(ours),
        "bounded": float("nan") if bounded is None else copies(bounded),
        "bounded_load": float("nan") if bounded is None else load(bounded),
        "seconds": seconds,
        "kahypar_seconds": kahypar_seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--max-load", type=float, default=1.1)
    parser.add_argument("--tokens", type=int, default=204_800)
    args = parser.parse_args()
    calibration, heldout = profile_halves(args.tokens)
    rows = [
        {"ranks": num_ranks, "layer": index, **compare(layer, other, num_ranks, args)}
        for num_ranks in args.ranks
        for index, (layer, other) in enumerate(zip(calibration.layers, heldout.layers, strict=True))
    ]
    print_table(rows, COLUMNS)
    keys = ("contiguous", "kahypar", "ours", "heldout_ratio", "load", "bounded", "bounded_load")
    means = {
        num_ranks: mean_of([row for row in rows if row["ranks"] == num_ranks], keys)
        for num_ranks in args.ranks
    }
    figures = {
        "ratio_max": round(max(row["ratio"] for row in rows), 4),
        "ratio_min": round(min(row["ratio"] for row in rows), 4),
        "heldout_ratio_range": [
            round(pick(row["heldout_ratio"] for row in rows), 4) for pick in (min, max)
        ],
        "bounded_load_max": round(max(row["bounded_load"] for row in rows), 4),
        "means": means,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "kahypar_seconds": round(sum(row["kahypar_seconds"] for row in rows), 1),
    }
    baseline = f"best of {args.runs} mt-kahypar runs, HIGHEST_QUALITY, 5 v-cycles"
    settings = vars(args) | {"calibration_tokens": calibration.num_tokens}
    finish("placement_quality", baseline, rows, settings, **figures)


if __name__ == "__main__":
    main()
