"""What placing the experts saves on every preset cluster, on real routing.

    python benchmarks/preset_times.py ROUTING.npz [--layers 6]

ROUTING.npz as `placement_time.py` reads it, of a model of gpt-oss-20b's sizes: every other prompt
is planned on, the others are judged. Some layers, evenly chosen, stand for all. Clusters of more
ranks than experts are taken with as many ranks as experts. Baseline: experts in the order of their
ids, a row for each rank (or node) that a token visits. Times are predicted.
"""

import argparse
from pathlib import Path

import numpy as np
from harness import finish, print_table
from placement_time import read_profiles

from c2r.planning import make_plan
from c2r.prediction import PRESETS, StepTime, Workload, best_time
from c2r.profiling import CollaborationProfile

SIZES = {
    "hidden_size": 2880,
    "expert_size": 2880,
    "shared_expert_size": 0,
    "num_layers": 24,
    "num_moe_layers": 24,
    "dense_parameters": 1_200_000_000,
}


def some_layers(profile, count):
    chosen = np.linspace(0, profile.num_layers - 1, count).round().astype(int)
    layers = tuple(profile.layers[index] for index in chosen)
    return CollaborationProfile(layers=layers, provenance=profile.provenance)


def whole(step, count):
    """The step of all layers, those chosen taking turns."""
    layers = tuple(step.layers[index % len(step.layers)] for index in range(count))
    return StepTime(dispatcher=step.dispatcher, layers=layers, rest=step.rest)


def compare(preset, planned, judged, tokens_per_rank):
    cluster = preset
    if preset.num_ranks > judged.num_experts:
        cluster = preset.of_size(judged.num_experts, preset.num_nodes)
    workload = Workload.of(judged, tokens_per_rank)
    where = {"num_ranks": cluster.num_ranks, "num_nodes": cluster.num_nodes}
    plan = make_plan(planned, cluster=cluster, workload=workload, **where)
    before, after = (
        whole(best_time(judged, tried, cluster, workload, chunks=(1,)), SIZES["num_moe_layers"])
        for tried in (None, plan)
    )
    return {
        "cluster": preset.name,
        "ranks": cluster.num_ranks,
        "nodes": cluster.num_nodes,
        "layer_before_ms": before.layer,
        "layer_after_ms": after.layer,
        "step_before_ms": before.total,
        "step_after_ms": after.total,
        "saved": 1 - after.total / before.total,
        "exchange_of_step": before.exchange_share,
        "dispatch": after.dispatcher,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("routing", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens-per-rank", type=int, default=4096)
    args = parser.parse_args()
    planned, judged = (
        some_layers(profile, args.layers) for profile in read_profiles(args.routing, SIZES)
    )
    rows = [compare(preset, planned, judged, args.tokens_per_rank) for preset in PRESETS.values()]
    print_table(rows)
    finish("preset_times", "experts in order, once per rank", rows, vars(args))


if __name__ == "__main__":
    main()
