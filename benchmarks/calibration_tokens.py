"""Text to place from, so that a bound on the load holds on text that was not seen.

    python benchmarks/calibration_tokens.py [--max-load 1.1]

The embedded model; tokens come evenly from the first halves of the held-out texts, loads are judged
on the second halves. Baseline: the bound. Prints the load of the busiest rank, mean and worst over
layers.
"""

import argparse

import numpy as np
import torch
from harness import finish, print_table

from c2r.adapters.huggingface import load_model, load_tokenizer, profile
from c2r.assets import heldout_files, tiny_folder
from c2r.planning import make_plan
from c2r.plans import ClusterTopology
from c2r.prediction.shares import layer_shares
from c2r.text import read_texts, split_texts
from c2r.timing import spread_windows


def loads(found, plan, topology):
    """Of the busiest rank over the mean, by layer."""
    layers = [
        layer_shares(found, index, layer, topology) for index, layer in enumerate(plan.layers)
    ]
    return [float(layer.rows.max() / layer.rows.mean()) for layer in layers]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-load", type=float, default=1.1)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--judged", type=int, default=131072, help="tokens")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[1 << exponent for exponent in range(13, 18)]
    )
    args = parser.parse_args()
    model = load_model(str(tiny_folder()), dtype=torch.float32)
    tokenizer = load_tokenizer(str(tiny_folder()))

    def profiled(texts, count):
        return profile(model, spread_windows(texts, tokenizer, count))

    seen, unseen = split_texts(read_texts(heldout_files()))
    judged = profiled(unseen, args.judged)
    rows = []
    for count in args.tokens:
        planned = profiled(seen, count)
        for size in args.ranks:
            topology = ClusterTopology(num_ranks=size)
            plan = make_plan(planned, num_ranks=size, max_load=args.max_load)
            found = loads(judged, plan, topology)
            rows.append(
                {
                    "tokens": planned.layers[0].num_tokens,
                    "ranks": size,
                    "load_seen": max(loads(planned, plan, topology)),
                    "load_mean": float(np.mean(found)),
                    "load_worst": max(found),
                    "over_bound": max(found) / args.max_load - 1,
                }
            )
    print_table(rows)
    finish("calibration_tokens", "the bound on the load", rows, vars(args))


if __name__ == "__main__":
    main()
