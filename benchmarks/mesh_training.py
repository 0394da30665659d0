"""Whether training on groups of ranks computes what one process computes.

    python benchmarks/mesh_training.py

The embedded model, in float32, with experts placed at random and two replicas on each rank, takes
ten steps of SGD with momentum on eight windows of text, in one process and on meshes (groups x
ranks) of gloo processes, each with its share of the windows. `loss` and `gradient` are differences
relative to one process: of the summed loss, and of the gradient of the parameter where it is
largest, each by its norm. Biases of keys are left out: their gradient is zero but for rounding.
With `--fsdp`, weights are sharded over all processes, as `finetune --fsdp` does.
Prints a table and a JSON line.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import transformers
from harness import finish, print_table

from c2r.adapters.huggingface import load_model, load_parallel, mesh_of, reduce_gradients
from c2r.assets import heldout_files, tiny_folder
from c2r.parallel import is_sharded, whole
from c2r.plans import ClusterTopology, LayerPlan, Plan

NUM_WINDOWS, LENGTH, NUM_LAYERS, NUM_EXPERTS = 8, 96, 4, 32


def windows():
    text = heldout_files()[0].read_bytes()[: NUM_WINDOWS * LENGTH]
    return torch.tensor(list(text)).view(NUM_WINDOWS, LENGTH)


def make_plan(num_ranks):
    rng = np.random.default_rng(0)

    def layer(index):
        placement = rng.permutation(np.arange(NUM_EXPERTS) % num_ranks)
        replicas = [
            rng.choice(np.flatnonzero(placement != rank), 2, replace=False)
            for rank in range(num_ranks)
        ]
        name = f"model.layers.{index}.mlp.gate"
        experts = {"num_experts": NUM_EXPERTS, "top_k": 4}
        return LayerPlan(name=name, **experts, placement=placement, replicas=np.stack(replicas))

    layers = tuple(map(layer, range(NUM_LAYERS)))
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=num_ranks))


def train(model, ids, num_steps, complete, sum_up):
    """The summed loss and the gradients of the first and the last step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    found = []
    for step in range(num_steps):
        optimizer.zero_grad()
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        loss.backward()
        complete(model)
        if step in (0, num_steps - 1):
            gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters()}
            found.append((sum_up(loss.detach()), gradients))
        optimizer.step()
    return found


def sum_gradients(model):
    """Over the ranks; FSDP2 has averaged those that it shards."""
    reduce_gradients(model)
    for parameter in filter(is_sharded, model.parameters()):
        parameter.grad.mul_(dist.get_world_size())


def alone(num_steps):
    model = load_model(tiny_folder(), dtype=torch.float32)
    return train(model, windows(), num_steps, lambda _: None, float)


def differences(found, exact, plan, rank):
    """Of the loss, and of the worst gradient that this rank has."""
    (loss, gradients), (exact_loss, whole) = found, exact
    worst = 0.0
    for name, gradient in gradients.items():
        expected = whole[name]
        if name.endswith("k_proj.bias"):
            continue
        if ".mlp.experts." in name:
            layer = plan.layers[int(name.split(".")[2])]
            own = layer.experts_of(rank)[: int((layer.placement == rank).sum())]
            gradient, expected = gradient[: len(own)], expected[own]
        worst = max(worst, float((gradient - expected).norm() / expected.norm()))
    return abs(loss / exact_loss - 1), worst


def measure(rank, mesh, args, folder, out):
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    size = mesh[0] * mesh[1]
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(size))
    meeting = f"file://{folder / f'meeting-{mesh[0]}x{mesh[1]}'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    exact, plan = alone(args.steps), make_plan(mesh[1])
    model = load_parallel(tiny_folder(), plan, dtype=torch.float32, fsdp=args.fsdp)
    ids = windows()[rank::size]

    def sum_up(loss):
        dist.all_reduce(loss)
        return float(loss)

    found = train(model, ids, args.steps, sum_gradients, sum_up)
    own = mesh_of(model).ranks.rank
    out.put([differences(*pair, plan, own) for pair in zip(found, exact, strict=True)])
    dist.barrier()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mesh", nargs="+", default=["1x4", "2x2", "2x4", "4x2"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fsdp", action="store_true")
    args = parser.parse_args()
    rows, started = [], time.time()
    with tempfile.TemporaryDirectory() as name:
        for mesh in args.mesh:
            shape = tuple(map(int, mesh.split("x")))
            out = mp.get_context("spawn").SimpleQueue()
            size = shape[0] * shape[1]
            mp.start_processes(measure, (shape, args, Path(name), out), nprocs=size)
            found = np.array([out.get() for _ in range(size)]).max(0)  # [step, figure]
            for step, (loss, gradient) in zip((1, args.steps), found.tolist(), strict=True):
                rows.append({"mesh": mesh, "step": step, "loss": loss, "gradient": gradient})
    print_table([{**row, **{k: f"{row[k]:.1e}" for k in ("loss", "gradient")}} for row in rows])
    worst = {"worst": max(max(row["loss"], row["gradient"]) for row in rows), "bound": 1e-5}
    seconds = time.time() - started
    finish("mesh_training", "one process", rows, vars(args), **worst, seconds=seconds)


if __name__ == "__main__":
    main()
