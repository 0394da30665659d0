"""Rows of real routing with replicas of experts, counted where the dispatcher sends them.

    python benchmarks/replicas_run.py ROUTING.npz [--replicas 2 --max-load 1.1]

ROUTING.npz is as in placement_time.py: every other prompt is planned on, the others are dispatched
by four gloo processes, each with its share of the tokens. Baseline: experts in the order of their
ids. Copies and rows are those of `Handle.num_rows_sent`, load is of the rows that a rank's experts
got; `as_predicted` says whether all rows are those that the plan predicts. Expert e multiplies by
e + 1, so that the sums can be checked: an error ends the program. `choose_ms` is the time in which
a rank finds the slots of all its tokens in one layer, the median over the layers.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import finish, print_table
from placement_time import GPT_OSS_20B, plan_of, read_profiles

from c2r.parallel import ProcessGroupComm, make_dispatcher
from c2r.plans import LayerPlan, contiguous_placement
from c2r.prediction import Workload, find_cluster

NUM_RANKS = 4


def held_out(path):
    """`[tokens, layers, k]` ids of every second prompt, and the weights."""
    with np.load(path) as arrays:
        experts, weights, lengths = (arrays[name] for name in ("experts", "weights", "lengths"))
    kept = np.repeat(np.arange(len(lengths)), lengths) % 2 == 1
    return torch.from_numpy(experts[kept].astype(np.int64)), torch.from_numpy(weights[kept]).float()


def make_plans(path, args):
    """The layers of each side, and the devices they are for."""
    planned, judged = read_profiles(path, GPT_OSS_20B)
    cluster = find_cluster("h100-8").of_size(NUM_RANKS, 1)
    workload = Workload.of(judged, 4096)
    sides = {"bounded": {}, f"bounded, {args.replicas} replicas": {"replicas": args.replicas}}
    plans = {
        name: plan_of(planned, cluster, workload, max_load=args.max_load, **options).layers
        for name, options in sides.items()
    }
    in_order = [
        LayerPlan(
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            placement=contiguous_placement(layer.num_experts, NUM_RANKS),
        )
        for layer in plans["bounded"]
    ]
    return {"in order": in_order, **plans}, cluster.topology


def run_layer(comm, layer, topology, name, ids, weights):
    """What one dispatch of this rank's tokens sends, gets and predicts; checks the sums."""
    dispatcher = make_dispatcher(
        name, comm=comm, placement=layer.placement, replicas=layer.replicas
    )
    started = time.perf_counter()
    dispatcher.slots.choose(ids)
    seconds = time.perf_counter() - started
    hidden = torch.ones(len(ids), 1)
    rows, handle = dispatcher.dispatch(hidden, ids, weights)
    factors = torch.from_numpy(layer.experts_of(comm.rank)) + 1.0
    output = rows.hidden * factors.repeat_interleave(rows.counts)[:, None]
    sums = dispatcher.combine(output, handle)
    torch.testing.assert_close(sums, (weights * (ids + 1)).sum(1, keepdim=True))
    visits = layer.ranks_of(ids.numpy(), topology)
    predicted = [int((visits == rank).any(1).sum()) for rank in range(comm.size)]
    return [*handle.num_rows_sent, *predicted, int(rows.counts.sum()), seconds]


def work(rank, folder, path, name, plans, topology):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_RANKS
    )
    comm = ProcessGroupComm()
    ids, weights = (tensor.tensor_split(NUM_RANKS)[rank] for tensor in held_out(path))
    for number, layers in enumerate(plans.values()):
        figures = [
            run_layer(comm, layer, topology, name, ids[:, index], weights[:, index])
            for index, layer in enumerate(layers)
        ]
        np.save(f"{folder}/{number}-{rank}.npy", np.array(figures))
    dist.destroy_process_group()


def summarize(name, figures, num_tokens):
    """Means over the layers of `[ranks, layers, ...]` figures, as `run_layer` gives them."""
    sent, predicted = figures[..., :NUM_RANKS], figures[..., NUM_RANKS : 2 * NUM_RANKS]
    expert_rows, seconds = figures[..., -2], figures[..., -1]
    arriving = sent.sum(0)  # [layers, ranks]
    return {
        "experts": name,
        "copies": float(arriving.sum(1).mean() / num_tokens),
        "busiest_rows": float(arriving.max(1).mean() * NUM_RANKS / num_tokens),
        "load": float((expert_rows.max(0) / expert_rows.mean(0)).mean()),
        "as_predicted": bool((sent == predicted).all()),
        "choose_ms": float(np.median(seconds) * 1e3),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("routing", type=Path)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--max-load", type=float, default=1.1)
    parser.add_argument("--dispatcher", default="zero_redundancy", help="or hierarchical")
    args = parser.parse_args()
    plans, topology = make_plans(args.routing, args)
    num_tokens = len(held_out(args.routing)[0])
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, args.routing, args.dispatcher, plans, topology)
        mp.start_processes(work, given, nprocs=NUM_RANKS)
        rows = [
            summarize(
                name,
                np.stack([np.load(f"{folder}/{number}-{rank}.npy") for rank in range(NUM_RANKS)]),
                num_tokens,
            )
            for number, name in enumerate(plans)
        ]
    for row in rows:
        row["of_copies"] = row["copies"] / rows[0]["copies"]
        row["of_rows"] = row["busiest_rows"] / rows[0]["busiest_rows"]
    print_table(rows)
    finish("replicas_run", "experts in order", rows, vars(args), num_tokens=num_tokens)


if __name__ == "__main__":
    main()
