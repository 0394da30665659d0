"""What choosing experts costs under each policy, against plain top-k.

    python benchmarks/policy_cost.py

Softmax scores of 4,096 random tokens over 256 experts, k = 8, on 16 ranks: the cost does not depend
on what the scores say, but on how many there are. Policies and the baseline `scores.topk(k)` are
interleaved; figures are medians and quartiles of the ratios of a round, in CPU time of the one
thread, so that what else the machine does counts less. Prints a table and a JSON line.
"""

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch

from c2r.planning.policies import order_partners_by_rank
from c2r.plans import NO_EXPERTS, LayerPlan
from c2r.routing import make_policy


def make_policies(args):
    rng = np.random.default_rng(0)
    placement = rng.permutation(np.arange(args.experts) % args.ranks)
    counts = rng.integers(0, 100, (args.experts, args.experts))
    half = np.argsort(rng.random((args.experts, args.experts)), axis=1)[:, : args.experts // 2]
    settings = {
        "c2r": (args.experts / 2, half),
        "c2r_placed": (4, order_partners_by_rank(counts + counts.T, placement, 4)),
        "group_limited": (4, NO_EXPERTS),
        "budgeted": (0.1, NO_EXPERTS),
        "pruned": (0.1, NO_EXPERTS),
        "priced": (0.06, NO_EXPERTS),
    }
    return {
        name: make_policy(
            LayerPlan(
                num_experts=args.experts,
                top_k=args.k,
                policy=name,
                strength=float(strength),
                partners=partners,
                placement=placement,
            )
        )
        for name, (strength, partners) in settings.items()
    }


def seconds(function, repeats):
    started = time.thread_time()
    for _ in range(repeats):
        function()
    return (time.thread_time() - started) / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    scores = (2 * torch.randn(args.tokens, args.experts, generator=generator)).softmax(-1)
    policies = make_policies(args)
    times = {name: [] for name in ("top_k", *policies)}
    with torch.no_grad():
        for index in range(args.rounds + 2):
            for name in times:
                choose = policies.get(name, torch.topk)
                elapsed = seconds(lambda choose=choose: choose(scores, args.k), repeats=3)
                if index >= 2:  # the first rounds warm up
                    times[name].append(elapsed)
    rows = {}
    for name, found in times.items():
        ratios = [ours / plain for ours, plain in zip(found, times["top_k"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "milliseconds": round(1000 * statistics.median(found), 3),
            "ratio_median": round(middle, 3),
            "ratio_quartiles": [round(low, 3), round(high, 3)],
        }
    print(f"{'policy':14} {'ms':>8} {'ratio':>7}  quartiles")
    for name, row in rows.items():
        low, high = row["ratio_quartiles"]
        print(f"{name:14} {row['milliseconds']:8.3f} {row['ratio_median']:7.2f}  {low} to {high}")
    result = {
        "benchmark": "policy_cost",
        "baseline": "scores.topk(k)",
        "settings": vars(args) | {"threads": 1},
        "policies": rows,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
