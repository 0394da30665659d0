"""What planning with replicas takes of the processor, and what layers then take in time.

    python benchmarks/replicas_cost.py [ROUTING.npz] [--profiles synthetic embedded routing]

Baseline: the plan without replicas, on the same profile and cluster. ROUTING.npz is that of
`placement_time.py`. The synthetic profile is that of `placement_scale.py`, 30 layers of 32 experts,
8 chosen, 50,000 sets a layer. Processor seconds are those of `make_plan` in one thread; times of a
layer are predicted, on the text that was planned on, and where there is other text on that too.
Prints a table and a JSON line.
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace

from harness import finish, print_table

from c2r.planning import make_plan
from c2r.prediction import Workload, best_time, find_cluster
from c2r.profiling import CollaborationProfile

CLUSTERS = {
    "synthetic": ("h100-8x2",),
    "embedded": ("h100-8", "hosts-4-10g"),
    "routing": ("h100-8x2", "hosts-4-10g"),
}


def synthetic(args):
    from placement_scale import synthetic_layer

    sizes = SimpleNamespace(experts=32, k=8, ranks=16, sets=args.sets)
    layers = tuple(synthetic_layer(sizes, seed) for seed in range(args.layers or 30))
    return CollaborationProfile(layers=layers), None


def embedded(_):
    from embedded import profile_halves

    return profile_halves(65_536)


def routing(args):
    from placement_time import GPT_OSS_20B, read_profiles

    profiles = read_profiles(args.routing, GPT_OSS_20B)
    return [some_of(profile, args.layers) for profile in profiles]


def some_of(profile, num_layers):
    layers = profile.layers[: num_layers or None]
    return CollaborationProfile(layers=layers, provenance=profile.provenance)


def plan_all(name, planned, judged, where, choices):
    cluster = find_cluster(where)
    workload = Workload.of(planned)
    topology = {"num_ranks": cluster.num_ranks, "num_nodes": cluster.num_nodes}
    base = None
    for replicas in (0, *choices):
        started = time.process_time()
        plan = make_plan(
            planned,
            **topology,
            cluster=cluster,
            workload=workload,
            replicas=replicas,
            num_threads=1,
        )
        seconds = time.process_time() - started
        base = base or seconds
        times = [
            None if text is None else best_time(text, plan, cluster, workload, chunks=(1,)).layer
            for text in (planned, judged)
        ]
        yield {
            "profile": name,
            "cluster": where,
            "replicas": str(replicas),
            "held": plan.num_replicas,
            "cpu_seconds": seconds,
            "of_plain": seconds / base,
            "layer_ms": times[0],
            "other_text_ms": times[1],
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("routing", type=Path, nargs="?")
    parser.add_argument("--profiles", nargs="+", choices=tuple(CLUSTERS), default=["synthetic"])
    parser.add_argument("--replicas", nargs="+", default=["1", "2", "4", "auto"])
    parser.add_argument("--layers", type=int, help="of each profile; all where left out")
    parser.add_argument("--sets", type=int, default=50_000, help="of a synthetic layer")
    args = parser.parse_args()
    choices = [each if each == "auto" else int(each) for each in args.replicas]
    rows = []
    for name in args.profiles:
        planned, judged = globals()[name](args)
        for where in CLUSTERS[name]:
            for row in plan_all(name, planned, judged, where, choices):
                rows.append(row)
                print(row, flush=True)
    print_table(rows)
    finish("replicas_cost", "the plan without replicas", rows, vars(args))


if __name__ == "__main__":
    main()
