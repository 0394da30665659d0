"""Placements of real routing made for all texts together, and for the worst of them.

    python benchmarks/placement_worst.py ROUTING.npz [--layers 6]

ROUTING.npz as `placement_time.py` takes it, with the `dataset` `[prompts]` that each prompt is
from. In each data set every other prompt is planned on, the others are judged, data set by data
set. Baseline: experts in the order of their ids. Four H100s, 4,096 tokens a rank; times are
predicted.
"""

import argparse
import functools
from pathlib import Path

import numpy as np
from harness import finish, print_table
from placement_time import GPT_OSS_20B

from c2r.errors import PlanError
from c2r.planning import make_plan
from c2r.plans import Plan, load_max_over_mean, rank_loads
from c2r.prediction import ModelSizes, Workload, best_time, find_cluster
from c2r.profiling import IdProfileBuilder

SIZES = ModelSizes(**GPT_OSS_20B)
BOUNDS = (1.1, 1.15, 1.2, 1.3, 1.5, 2.0)


def read_texts(path, num_layers):
    """By data set, the profile that is planned on and the one that is judged."""
    with np.load(path) as arrays:
        experts, lengths = arrays["experts"][:, :num_layers].astype(np.int64), arrays["lengths"]
        names = arrays["dataset"]
    prompt = np.repeat(np.arange(len(lengths)), lengths)
    texts = {}
    for name in np.unique(names):
        mine = np.flatnonzero(names == name)
        if len(mine) < 4:
            continue
        halves = (mine[::2], mine[1::2])
        texts[str(name)] = [profile_of(experts[np.isin(prompt, half)]) for half in halves]
    return texts


def profile_of(experts):
    builder = IdProfileBuilder(32)
    for layer in range(experts.shape[1]):
        builder.update(layer, experts[:, layer])
    return builder.build({layer: f"layers.{layer}" for layer in builder.layers})


def bounded(profile, **options):
    """The plan within the least of `BOUNDS` that can be kept, layer by layer, and the bounds."""
    layers, bounds = [], []
    for index, layer in enumerate(profile.layers):
        texts = [one_layer(text, index) for text in options.get("worst_of", ())]
        for bound in BOUNDS:
            try:
                given = {**options, "worst_of": texts, "max_load": bound}
                plan = make_plan(type(profile)(layers=(layer,)), 4, **given)
            except PlanError:
                continue
            layers += plan.layers
            bounds.append(bound)
            break
        else:
            raise SystemExit(f"no bound up to {BOUNDS[-1]} can be kept in layer {index}")
    return Plan(layers=tuple(layers), topology=plan.topology), float(np.mean(bounds))


def one_layer(profile, index):
    return type(profile)(layers=(profile.layers[index],))


def judge(texts, plan, cluster, workload):
    """The worst data set's load and time of a layer, and the means over data sets."""
    loads, times = [], []
    for _, profile in texts.values():
        times.append(best_time(profile, plan, cluster, workload, chunks=(1,)).layer)
        placements = [layer.placement for layer in plan.layers] if plan else None
        found = []
        for index, layer in enumerate(profile.layers):
            placement = placements[index] if placements else np.arange(32) // 8
            found.append(load_max_over_mean(rank_loads(layer.load, placement, 4)))
        loads.append(np.mean(found))
    return {
        "load_worst": float(max(loads)),
        "load_mean": float(np.mean(loads)),
        "layer_ms_worst": float(max(times)),
        "layer_ms_mean": float(np.mean(times)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("routing", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    args = parser.parse_args()
    texts = read_texts(args.routing, args.layers)
    planned = [profiles[0] for profiles in texts.values()]
    pooled = functools.reduce(lambda a, b: a.merge(b), planned)
    cluster = find_cluster("h100-8").of_size(4, 1)
    workload = Workload(sizes=SIZES, tokens_per_rank=4096)
    by_time = {"cluster": cluster, "workload": workload}
    plans = {
        "in order": (None, 0.0),
        "pooled, few copies, bounded": bounded(pooled),
        "pooled, little time": (make_plan(pooled, 4, **by_time), 0.0),
        "worst, few copies, bounded": bounded(pooled, worst_of=planned),
        "worst, little time": (make_plan(pooled, 4, worst_of=planned, **by_time), 0.0),
    }
    rows = [
        {"experts": name, "bound": bound, **judge(texts, plan, cluster, workload)}
        for name, (plan, bound) in plans.items()
    ]
    print_table(rows)
    given = {**vars(args), "data_sets": list(texts)}
    finish("placement_worst", "experts in order, once per rank", rows, given)


if __name__ == "__main__":
    main()
