"""How much memory a rank needs to load a model of which it keeps its own experts only.

    python benchmarks/load_memory.py

A random Qwen2-MoE model is written to a temporary folder. One process loads it whole (the
baseline); then four gloo processes load it by `c2r.load_parallel`, under a placement that is not
contiguous. Memory is what a process holds beyond what it held just before loading, at its peak,
sampled every 2 ms: `anonymous` pages are its own; `resident` also counts pages of the file that the
system keeps mapped and may drop. The bound is 1.2 times the weights that the rank keeps. Prints a
table and a JSON line.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from harness import finish, print_table
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

import c2r
from c2r.adapters.huggingface import load_model
from c2r.assets import tiny_folder
from c2r.plans import ClusterTopology, LayerPlan, Plan

MIB = 2**20


def write_model(folder, args):
    config = Qwen2MoeConfig(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=args.experts,
        num_experts_per_tok=4,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=1024,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    Qwen2MoeForCausalLM(config).save_pretrained(folder)


def load(folder, num_layers, num_experts, num_ranks):
    if num_ranks == 1:
        return load_model(folder)
    return c2r.load_parallel(folder, make_plan(num_layers, num_experts, num_ranks))


def make_plan(num_layers, num_experts, num_ranks):
    rng = np.random.default_rng(0)
    layers = tuple(
        LayerPlan(
            name=f"model.layers.{index}.mlp.gate",
            num_experts=num_experts,
            top_k=4,
            placement=rng.permutation(np.arange(num_experts) % num_ranks),
        )
        for index in range(num_layers)
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=num_ranks))


class PeakMemory:
    """The most memory in MiB beyond the start, of each kind, while the block runs."""

    def __enter__(self):
        self.start, self.peak = self._now(), {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while True:
            for kind, value in self._now().items():
                self.peak[kind] = max(self.peak.get(kind, 0), value - self.start[kind])
            if self._stop.wait(0.002):
                return

    @staticmethod
    def _now():
        lines = Path("/proc/self/status").read_text().splitlines()
        values = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
        names = {"anonymous": "RssAnon", "resident": "VmRSS"}
        return {kind: int(values[name]) / 1024 for kind, name in names.items()}


def measure(rank, args, folder, out):
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    num_ranks = 1 if rank < 0 else args.ranks
    if num_ranks > 1:
        os.environ["LOCAL_RANK"] = str(rank)
        meeting = f"file://{folder / 'meeting'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_ranks)
    load(tiny_folder(), 4, 32, num_ranks)  # imports what loading needs, and starts its threads
    with PeakMemory() as memory:
        model = load(folder / "model", args.layers, args.experts, num_ranks)
    kept = sum(p.numel() * p.itemsize for p in model.parameters()) / MIB
    out.put({"rank": rank, "kept": kept, **memory.peak})


def measure_alone(_, *arguments):
    measure(-1, *arguments)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--ranks", type=int, default=4)
    args = parser.parse_args()
    out = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", args)
        started = time.time()
        mp.start_processes(measure_alone, (args, folder, out), nprocs=1)
        mp.start_processes(measure, (args, folder, out), nprocs=args.ranks)
    rows = sorted((out.get() for _ in range(args.ranks + 1)), key=lambda row: row["rank"])
    for row in rows:
        row["ratio"] = row["anonymous"] / row["kept"]
        row["resident_ratio"] = row["resident"] / row["kept"]
    print_table([row | {"rank": "whole" if row["rank"] < 0 else row["rank"]} for row in rows])
    worst = max(row["ratio"] for row in rows if row["rank"] >= 0)
    figures = {"worst_ratio": worst, "bound": 1.2, "seconds": time.time() - started}
    finish("load_memory", "one process that loads the whole model", rows, vars(args), **figures)


if __name__ == "__main__":
    main()
