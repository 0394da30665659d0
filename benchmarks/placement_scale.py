"""How long a plan for a large model takes, and how much memory.

    python benchmarks/placement_scale.py

58 layers of 256 experts, k = 8, on 32 ranks, 100,000 distinct routing sets a layer, placed for few
copies or, with `--by-time`, for the least time on 32 H100s. No such model
can be run here, so the sets are synthetic: experts of unlike popularity in 32 hidden groups, a
token preferring one group, with noise that leaves no placement near one copy per token. What they
show is time and memory; how good a placement is shows `placement_quality.py`, on real sets.
Prints a table and a JSON line.
"""

import argparse
import resource
import time

import numpy as np
from harness import finish, print_table

from c2r.planning import make_plan
from c2r.prediction import predict_traffic
from c2r.profiling import CollaborationProfile, LayerProfile, RoutingSets


def synthetic_layer(args, seed):
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(args.experts) % args.ranks)
    popularity = np.log(rng.gamma(2.0, 1.0, args.experts))
    tokens = []
    while sum(map(len, tokens)) < 1.05 * args.sets:
        home = rng.integers(args.ranks, size=(10_000, 1))
        scores = popularity + 2.5 * (group == home) + rng.gumbel(size=(10_000, args.experts))
        tokens.append(np.argpartition(-scores, args.k, axis=1)[:, : args.k])
    sets = RoutingSets.count(np.concatenate(tokens), rng, capacity=10**7)
    experts, counts = sets.experts, sets.counts
    kept = np.sort(rng.permutation(len(experts))[: args.sets])
    experts, counts = experts[kept], counts[kept]
    held = np.zeros((len(experts), args.experts), dtype=np.float32)
    np.put_along_axis(held, experts, 1, axis=1)
    coactivation = (held.T @ (held * counts[:, None].astype(np.float32))).astype(np.int64)
    load = coactivation.diagonal().copy()
    np.fill_diagonal(coactivation, 0)
    return LayerProfile(
        name="",
        num_experts=args.experts,
        top_k=args.k,
        num_tokens=int(counts.sum()),
        coactivation=coactivation,
        load=load,
        sets=RoutingSets(experts=experts, counts=counts, num_tokens=int(counts.sum())),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=32)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--sets", type=int, default=100_000)
    parser.add_argument("--max-load", type=float)
    parser.add_argument("--replicas", type=int, default=0)
    parser.add_argument("--by-time", action="store_true")
    parser.add_argument("--jobs", type=int)
    args = parser.parse_args()
    profile = CollaborationProfile(
        layers=tuple(synthetic_layer(args, seed) for seed in range(args.layers))
    )
    times = [time.perf_counter()]
    plan = make_plan(
        profile,
        num_ranks=args.ranks,
        num_nodes=args.nodes,
        max_load=args.max_load,
        replicas=args.replicas,
        objective="time" if args.by_time else "sets",
        num_threads=args.jobs,
        on_layer=lambda index: times.append(time.perf_counter()),
    )
    seconds = np.diff(times)
    mean = predict_traffic(profile, plan).mean
    row = {
        "seconds": round(times[-1] - times[0], 1),
        "seconds_per_layer_median": round(float(np.median(seconds)), 2),
        "seconds_per_layer_max": round(float(seconds.max()), 2),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2),
        "copies_in_order": round(mean.copies_in_order, 4),
        "copies_placed": round(mean.copies_placed, 4),
        "rank_load_max_over_mean": round(mean.rank_load_max_over_mean, 4),
    }
    print_table([row])
    finish("placement_scale", "experts in order", [row], vars(args), synthetic=True)


if __name__ == "__main__":
    main()
