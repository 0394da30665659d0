"""What placing the experts saves on every preset cluster, on real routing.

    python benchmarks/preset_times.py ROUTING.npz [--layers 6]

ROUTING.npz as `placement_time.py` reads it, of a model of gpt-oss-20b's sizes: every other prompt
is planned on, the others are judged. Some layers, evenly chosen, stand for all. Clusters of more
ranks than experts are taken with as many ranks as experts. Baseline: experts in the order of their
ids, a row for each rank (or node) that a token visits. Times are predicted.
"""

import argparse
from pathlib import Path

from harness import finish, print_table
from placement_time import GPT_OSS_20B, read_profiles

from c2r.planning import make_plan
from c2r.planning.scaling import of_all_layers, some_layers
from c2r.prediction import PRESETS, Workload, best_time


def compare(preset, planned, judged, tokens_per_rank):
    cluster = preset
    if preset.num_ranks > judged.num_experts:
        cluster = preset.of_size(judged.num_experts, preset.num_nodes)
    workload = Workload.of(judged, tokens_per_rank)
    where = {"num_ranks": cluster.num_ranks, "num_nodes": cluster.num_nodes}
    plan = make_plan(planned, cluster=cluster, workload=workload, **where)
    before, after = (
        of_all_layers(
            best_time(judged, tried, cluster, workload, chunks=(1,)), GPT_OSS_20B["num_moe_layers"]
        )
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
        some_layers(profile, args.layers) for profile in read_profiles(args.routing, GPT_OSS_20B)
    )
    rows = [compare(preset, planned, judged, args.tokens_per_rank) for preset in PRESETS.values()]
    print_table(rows)
    finish("preset_times", "experts in order, once per rank", rows, vars(args))


if __name__ == "__main__":
    main()
