"""Whether a sharded fine-tuning that was killed ends as one that was not.

    python benchmarks/mesh_resuming.py

The embedded model is fine-tuned as `finetune --expert-parallel --fsdp` does, on meshes (groups x
ranks) of gloo processes, with a checkpoint at every step. Undisturbed; then one process is killed
in the middle, which ends all, and new ones resume from what is there. `same` is whether both tuned
models have the same bytes. A row with two meshes began on the first and went on on the second. Then
`loss` is the largest difference of a step's loss to that of the first mesh, and `weights` that of a
parameter, as a share of how far training had moved it. Prints a table and a JSON line.
"""

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from harness import finish, print_table
from mesh_training import NUM_LAYERS, windows
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from c2r.adapters.huggingface import load_parallel
from c2r.assets import tiny_folder
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.training import FinetuneSettings, finetune

NUM_EXPERTS, NUM_STEPS = 32, 6
VICTIM = 3


class Killer(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_plan(num_ranks):
    rng = np.random.default_rng(0)
    layers = tuple(
        LayerPlan(
            name=f"model.layers.{index}.mlp.gate",
            num_experts=NUM_EXPERTS,
            top_k=4,
            placement=rng.permutation(np.arange(NUM_EXPERTS) % num_ranks),
        )
        for index in range(NUM_LAYERS)
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=num_ranks))


def examples():
    positions = torch.arange(windows().shape[1])
    return [{"input_ids": row, "labels": row, "position_ids": positions} for row in windows()]


def train(rank, mesh, plan, out, killed_at, meeting):
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    size = mesh[0] * mesh[1]
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29500", OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    placing = plan.folded(mesh[1])
    model = load_parallel(tiny_folder(), placing, dtype=torch.float32, fsdp=True)
    settings = FinetuneSettings(
        num_steps=NUM_STEPS,
        batch_size=size,
        learning_rate=1e-3,
        save_every=1,
        log_every=1,
        expert_parallel=True,
        fsdp=True,
    )
    callbacks = [Killer(killed_at)] if killed_at and rank == VICTIM else []
    finetune(model, examples(), plan, settings, out, callbacks)
    dist.barrier()
    dist.destroy_process_group()


def run(mesh, plan, out, killed_at=0):
    with tempfile.TemporaryDirectory() as name:
        given = mesh, plan, out, killed_at, f"file://{name}/meeting"
        try:
            mp.start_processes(train, given, mesh[0] * mesh[1], start_method="forkserver")
        except mp.ProcessExitedException as error:
            assert killed_at and error.error_index == VICTIM, error
        assert out.exists() != bool(killed_at)


def losses(path):
    log = TrainerState.load_from_json(str(path)).log_history
    return [entry["loss"] for entry in log if "loss" in entry]


def compare(one, other):
    """Whether the bytes are the same, and how far losses and weights are from each other."""
    files = [folder / "model.safetensors" for folder in (one, other)]
    logs = [losses(folder / "trainer_state.json") for folder in (one, other)]
    loss = max(abs(ours / theirs - 1) for ours, theirs in zip(*logs, strict=True))
    ours, theirs = map(load_file, files)
    start = load_file(tiny_folder() / "model.safetensors")
    weights = max(
        float((ours[name] - theirs[name]).norm() / (ours[name] - start[name].float()).norm())
        for name in ours
        if not name.endswith("k_proj.bias")  # whose gradient is zero but for rounding
    )
    same = files[0].read_bytes() == files[1].read_bytes()
    return {"same": same, "loss": loss, "weights": weights}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mesh", nargs="+", default=["2x4", "4x2", "2x4-4x2"])
    args = parser.parse_args()
    mp.get_context("forkserver").set_forkserver_preload(["c2r.training"])  # once for all processes
    rows, whole, started = [], {}, time.time()
    with tempfile.TemporaryDirectory() as name:
        for way in args.mesh:
            meshes = [tuple(map(int, mesh.split("x"))) for mesh in way.split("-")]
            first = meshes[0]
            plan = make_plan(max(num_ranks for _, num_ranks in meshes))
            if first not in whole:
                whole[first] = Path(name) / f"whole-{first}"
                run(first, plan, whole[first])
            out = Path(name) / f"killed-{way}"
            run(first, plan, out, killed_at=NUM_STEPS // 2)
            run(meshes[-1], plan, out)
            rows.append({"mesh": way, **compare(whole[first], out)})
    print_table([{**row, **{k: f"{row[k]:.1e}" for k in ("loss", "weights")}} for row in rows])
    finish("mesh_resuming", "undisturbed", rows, vars(args), seconds=time.time() - started)


if __name__ == "__main__":
    main()
