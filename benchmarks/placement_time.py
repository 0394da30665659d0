"""Placements of real routing, made for few copies and made for little time, judged by the time.

    python benchmarks/placement_time.py ROUTING.npz [--hidden-size 2880 --expert-size 2880]

ROUTING.npz holds `experts` `[tokens, layers, k]` and `lengths` `[prompts]`, the tokens of each
prompt in order. Every other prompt is planned on, the others are judged. Baseline: experts in the
order of their ids, a row for each rank that a token visits. Times are predicted
(`c2r.prediction.time`), for the dispatcher that is fastest there.
"""

import argparse
from pathlib import Path

import numpy as np
from harness import finish, print_table

from c2r.errors import PlanError
from c2r.planning import make_plan
from c2r.prediction import Workload, best_time, find_cluster
from c2r.prediction.shares import layer_shares
from c2r.profiling import IdProfileBuilder

GPT_OSS_20B = {
    "hidden_size": 2880,
    "expert_size": 2880,
    "shared_expert_size": 0,
    "num_layers": 24,
    "num_moe_layers": 24,
    "dense_parameters": 1_200_000_000,
}
CLUSTERS = (
    ("h100-8", 4, 1),
    ("h100-8", 8, 1),
    ("h100-8x2", 8, 2),
    ("h100-8x2", 16, 2),
    ("hosts-4-10g", 4, 4),
)
PLANS = {
    "in order": None,
    "few copies": {},
    "few copies, bounded": {"max_load": 1.1},
    "little time": {"is_by_time": True},
    "few copies, bounded, 2 replicas": {"max_load": 1.1, "replicas": 2},
    "little time, 2 replicas": {"is_by_time": True, "replicas": 2},
    "little time, replicas that pay": {"is_by_time": True, "replicas": "auto"},
}
BOUNDS = (1.1, 1.15, 1.2, 1.3, 1.5)


def read_profiles(path, sizes):
    """The routing of every other prompt, and of the prompts between."""
    with np.load(path) as arrays:
        experts, lengths = arrays["experts"].astype(np.int64), arrays["lengths"]
    is_planned = np.repeat(np.arange(len(lengths)), lengths) % 2 == 0
    num_experts = int(experts.max()) + 1
    profiles = []
    for kept in (is_planned, ~is_planned):
        builder = IdProfileBuilder(num_experts)
        for layer in range(experts.shape[1]):
            builder.update(layer, experts[kept, layer])
        names = {layer: f"model.layers.{layer}.mlp.router" for layer in builder.layers}
        profiles.append(builder.build(names, {"request": {"sizes": sizes}}))
    return profiles


def plan_of(profile, cluster, workload, is_by_time=False, max_load=None, **options):
    """The plan; a bound that cannot be kept is raised to the next that can."""
    where = {"num_ranks": cluster.num_ranks, "num_nodes": cluster.num_nodes, **options}
    if is_by_time:
        return make_plan(profile, cluster=cluster, workload=workload, **where)
    for bound in (None,) if max_load is None else BOUNDS:
        try:
            return make_plan(profile, max_load=bound, **where)
        except PlanError as error:
            reason = error
    raise reason


def judge(profile, plan, cluster, workload):
    """Copies, rows and load of the busiest rank, and the time of a layer, on other prompts."""
    shares = [
        layer_shares(profile, index, None if plan is None else plan.layers[index], cluster.topology)
        for index in range(profile.num_layers)
    ]
    step = best_time(profile, plan, cluster, workload, chunks=(1,))
    return {
        "copies": float(np.mean([layer.visits.sum() for layer in shares])),
        "busiest_rows": float(
            np.mean([layer.visits.max() * len(layer.visits) for layer in shares])
        ),
        "load": float(np.mean([layer.rows.max() / layer.rows.mean() for layer in shares])),
        "layer_ms": step.layer,
        "exchange_share": step.exchange_share,
        "dispatcher": step.dispatcher,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("routing", type=Path)
    parser.add_argument("--hidden-size", type=int, default=GPT_OSS_20B["hidden_size"])
    parser.add_argument("--expert-size", type=int, default=GPT_OSS_20B["expert_size"])
    parser.add_argument("--dense-parameters", type=int, default=GPT_OSS_20B["dense_parameters"])
    parser.add_argument("--tokens-per-rank", type=int, default=4096)
    args = parser.parse_args()
    given = ("hidden_size", "expert_size", "dense_parameters")
    sizes = {**GPT_OSS_20B, **{name: getattr(args, name) for name in given}}
    planned, judged = read_profiles(args.routing, sizes)
    rows = []
    for name, num_ranks, num_nodes in CLUSTERS:
        cluster = find_cluster(name).of_size(num_ranks, num_nodes)
        workload = Workload.of(judged, args.tokens_per_rank)
        for plan_name, options in PLANS.items():
            plan = None if options is None else plan_of(planned, cluster, workload, **options)
            figures = judge(judged, plan, cluster, workload)
            base = rows[-1]["base"] if plan is not None else figures
            rows.append(
                {
                    "cluster": f"{num_ranks} x {name}, {num_nodes} nodes",
                    "experts": plan_name,
                    **figures,
                    "of_rows": figures["busiest_rows"] / base["busiest_rows"],
                    "of_time": figures["layer_ms"] / base["layer_ms"],
                    "base": base,
                }
            )
    for row in rows:
        del row["base"]
    print_table(rows)
    finish("placement_time", "experts in order, once per rank", rows, vars(args))


if __name__ == "__main__":
    main()
