"""What choosing experts costs under each policy, against plain top-k.

    python benchmarks/policy_cost.py

Softmax scores of 4,096 random tokens over 256 experts, k = 8, on 16 ranks: the cost does not depend
on what the scores say, but on how many there are. Policies and the baseline `scores.topk(k)` are
interleaved; figures are medians and quartiles of the ratios of a round, in CPU time of the one
thread, so that what else the machine does counts less. Prints a table and a JSON line.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from harness import compare, finish, interleave, print_table, seconds_of

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


def seconds(choose):
    return seconds_of(lambda: [choose() for _ in range(3)], time.thread_time) / 3


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
    sides = {
        name: partial(choose, scores, args.k)
        for name, choose in {"top_k": torch.topk, **make_policies(args)}.items()
    }
    with torch.no_grad():
        times = interleave(sides, args.rounds, seconds, num_warm_ups=2)
    rows = compare(times, "top_k", "policy")
    print_table(rows)
    finish("policy_cost", "top_k: scores.topk(k)", rows, vars(args) | {"threads": 1})


if __name__ == "__main__":
    main()
