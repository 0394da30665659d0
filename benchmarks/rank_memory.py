"""How much memory a rank needs to profile, run and fine-tune a model that is spread over ranks.

    python benchmarks/rank_memory.py

A random Qwen3-MoE of about 750 MB is written to a temporary folder. For every mesh (groups x ranks)
and command (`load`: nothing more), new gloo processes do the command on the embedded model, which
imports and starts all that it needs; then on the large one. Memory is what a process holds of its
own (`RssAnon`) beyond what it held between the two, at its peak, sampled every 2 ms. `share` is
what the rank must hold: its weights; in fine-tuning their gradients, AdamW's two moments and what
one forward pass keeps for backward; and, as room to work, the experts of its largest layer once
more; with `--fsdp`, by which `run` and `finetune` shard weights, the largest part of the model that
is gathered as one.
Fine-tuning writes a checkpoint at every step, and the tuned model. The bound is 1.15 times the
share; `even` is the highest peak over the lowest. With `--stored bfloat16` files are half as large,
so that no weight can stay in them. Prints a table and a JSON line.
"""

import argparse
import ctypes
import gc
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from harness import finish, print_table
from load_memory import MIB, PeakMemory
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import c2r
from c2r.adapters.huggingface import load_parallel
from c2r.adapters.huggingface.expert_parallel.spread import local_experts
from c2r.assets import tiny_folder
from c2r.parallel import is_sharded_module, join_world, merge_profiles, own_part
from c2r.plans import ClusterTopology, LayerPlan, Plan, contiguous_placement
from c2r.training import FinetuneSettings, finetune

BOUND = 1.15
NUM_EXPERTS = 64
SETTINGS = FinetuneSettings(
    num_steps=2, batch_size=4, learning_rate=1e-4, save_every=1, expert_parallel=True
)


def write_model(folder, args):
    config = Qwen3MoeConfig(
        vocab_size=args.vocab,
        hidden_size=512,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        head_dim=64,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=4,
        moe_intermediate_size=256,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config).to(getattr(torch, args.stored))
    model.save_pretrained(folder, max_shard_size="100MB")


def make_plan(names, num_experts, top_k, num_ranks):
    placement = contiguous_placement(num_experts, num_ranks)
    layers = tuple(
        LayerPlan(name=name, num_experts=num_experts, top_k=top_k, placement=placement[::-1])
        for name in names
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=num_ranks))


def batches(length):
    ids = torch.randint(0, 256, (8, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row[None], "attention_mask": torch.ones(1, length)} for row in ids]


def windows(length):
    return [
        {
            "input_ids": batch["input_ids"][0],
            "labels": batch["input_ids"][0],
            "position_ids": torch.arange(length),
        }
        for batch in batches(length)
    ]


def work(command, folder, plan, out, length, fsdp):
    world = join_world()
    model = load_parallel(folder, plan, dtype=torch.float32, fsdp=fsdp)
    if command == "profile":
        own = c2r.profile(model, batches(length)[world.rank :: world.size])
        merge_profiles(own, world)
    elif command == "run":
        c2r.run(model, batches(length))
    elif command == "finetune":
        batch_size = max(SETTINGS.batch_size, world.size)
        settings = replace(SETTINGS, batch_size=batch_size, fsdp=fsdp)
        finetune(model, windows(length), plan, settings, out)
    return model


def kept_for_backward(model, length):
    """Bytes that a forward pass of a rank's part of a step keeps, parameters left out."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(**{k: v.long() for k, v in batches(length)[0].items()}, use_cache=False)
    # What was gathered for a layer is empty by now; the outermost module still has it.
    owned = {own_part(p).untyped_storage().data_ptr() for p in model.parameters()}
    return sum(storage.nbytes() for start, storage in kept.items() if start not in owned)


def at_once(model):
    """Parameters that a rank has in use together: of experts, or gathered as one by FSDP2."""
    taken = set()
    for module in reversed([m for m in model.modules() if is_sharded_module(m)]):
        yield set(module.parameters()) - taken
        taken |= set(module.parameters())
    for _, experts, _ in local_experts(model):
        yield set(experts.parameters())


def share_of(model, command, length):
    weights = sum(own_part(p).nbytes for p in model.parameters())
    largest = max(sum(p.nbytes for p in parameters) for parameters in at_once(model))
    copies = 4 if command == "finetune" else 1
    activations = kept_for_backward(model, length) if command == "finetune" else 0
    return (copies * weights + largest + activations) / MIB, weights / MIB


def measure(rank, args, command, mesh, folder, out):
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    num_groups, num_ranks = mesh
    size = num_groups * num_ranks
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29500", OMP_NUM_THREADS="1")
    meeting = f"file://{folder / f'meeting-{command}-{num_groups}x{num_ranks}'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    tiny = make_plan([f"model.layers.{i}.mlp.gate" for i in range(4)], 32, 4, num_ranks)
    began = folder / f"tiny-{command}-{size}-{num_ranks}"
    work(command, tiny_folder(), tiny, began, 32, args.fsdp)
    names = [f"model.layers.{i}.mlp.gate" for i in range(args.layers)]
    plan = make_plan(names, NUM_EXPERTS, 4, num_ranks)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with PeakMemory() as memory:
        tuned = folder / f"{command}-{size}-{num_ranks}"
        model = work(command, folder / "model", plan, tuned, args.length, args.fsdp)
    share, weights = share_of(model, command, args.length)
    out.put({"rank": rank, "weights": weights, "share": share, "peak": memory.peak["anonymous"]})
    dist.barrier()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=8, help="of attention, of 64 values each")
    parser.add_argument("--stored", default="float32", help="type of the weights in the files")
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--mesh", nargs="+", default=["1x2", "1x4", "2x2"])
    parser.add_argument("--command", nargs="+", default=["profile", "run", "finetune"])
    parser.add_argument("--fsdp", action="store_true")
    args = parser.parse_args()
    rows, started = [], time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", args)
        for mesh in args.mesh:
            shape = tuple(map(int, mesh.split("x")))
            for command in args.command:
                out = mp.get_context("spawn").SimpleQueue()
                size = shape[0] * shape[1]
                mp.start_processes(measure, (args, command, shape, folder, out), nprocs=size)
                found = [out.get() for _ in range(size)]
                worst = max(found, key=lambda row: row["peak"] / row["share"])
                peaks = [row["peak"] for row in found]
                even = max(peaks) / min(peaks)
                row = {"mesh": mesh, "command": command, **worst, "even": even}
                rows.append(row | {"ratio": worst["peak"] / worst["share"]})
                print_table(rows[-1:])
    print_table(rows)
    figures = {"worst_ratio": max(row["ratio"] for row in rows), "bound": BOUND}
    seconds = time.time() - started
    finish("rank_memory", "share of a rank", rows, vars(args), **figures, seconds=seconds)


if __name__ == "__main__":
    main()
