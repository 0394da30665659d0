"""Permuting a checkpoint against copying its files.

    python benchmarks/permute_speed.py [--folder FOLDER]

The checkpoint is synthetic: 2 GB of random bytes in bfloat16, in four shards with an index, half of
its layers with experts by name (as DeepSeek-V3) and half stacked (as GPT-OSS), experts of 1.5 MiB.
The baseline copies the same files one by one with shutil.copyfile. Both flush every file to the
disk (fsync); rounds alternate. Peak memory is what a permutation adds to the process.
Prints a table and a JSON line.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from harness import compare, finish, interleave, print_table, seconds_of

from c2r.adapters.huggingface import permute_checkpoint, undo_permutation
from c2r.plans import ClusterTopology, LayerPlan, Plan

NUM_EXPERTS, NUM_RANKS, HIDDEN, WIDTH = 32, 8, 1024, 256
LAYERS_PER_SHARD, NUM_SHARDS = 10, 4
BLOCK = np.random.default_rng(0).bytes(64 << 20)


def tensor_bytes(size, start):
    """Random bytes, the same for the same `start`; other tensors begin elsewhere in the block."""
    start %= len(BLOCK)
    content = BLOCK[start : start + size]
    while len(content) < size:
        content += BLOCK[: size - len(content)]
    return content


def layer_tensors(number):
    block = f"model.layers.{number}.mlp"
    tensors = {f"{block}.gate.weight": [NUM_EXPERTS, HIDDEN]}
    projections = {"gate_proj": [WIDTH, HIDDEN], "up_proj": [WIDTH, HIDDEN]}
    projections["down_proj"] = [HIDDEN, WIDTH]
    for name, shape in projections.items():
        if number % 2:
            tensors[f"{block}.experts.{name}"] = [NUM_EXPERTS, *shape]
        else:
            for expert in range(NUM_EXPERTS):
                tensors[f"{block}.experts.{expert}.{name}.weight"] = shape
    return tensors


def write_checkpoint(folder):
    weight_map = {}
    for shard in range(NUM_SHARDS):
        first = shard * LAYERS_PER_SHARD
        tensors = {}
        for number in range(first, first + LAYERS_PER_SHARD):
            tensors |= layer_tensors(number)
        name = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape in tensors.items():
            end = offset + 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            weight_map[tensor], offset = name, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for position, shape in enumerate(tensors.values()):
                file.write(tensor_bytes(2 * int(np.prod(shape)), 9_999_999 * position))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"num_experts": NUM_EXPERTS}))


def random_plan():
    rng = np.random.default_rng(1)
    layers = tuple(
        LayerPlan(
            name=f"model.layers.{number}.mlp.gate",
            num_experts=NUM_EXPERTS,
            top_k=4,
            policy="c2r",
            strength=8.0,
            partners=np.array([np.delete(np.arange(NUM_EXPERTS), i)[:8] for i in range(32)]),
            placement=rng.permutation(np.arange(NUM_EXPERTS) % NUM_RANKS),
        )
        for number in range(LAYERS_PER_SHARD * NUM_SHARDS)
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=NUM_RANKS))


def copy_files(source, target):
    target.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())


class Sides:
    """Copying and permuting the checkpoint in `folder`, each into a folder that was emptied."""

    def __init__(self, folder):
        self.folder, self.source, self.plan = folder, folder / "model", random_plan()
        self.peaks = []

    def copy(self):
        copy_files(self.source, self.folder / "copy")

    def permute(self):
        before = reset_peak()
        permute_checkpoint(self.source, self.plan, self.folder / "permute")
        self.peaks.append(peak_bytes() - before)

    def seconds(self, name):
        shutil.rmtree(self.folder / name, ignore_errors=True)
        os.sync()
        return seconds_of(getattr(self, name))

    def check_undone(self):
        undo_permutation(self.folder / "permute", self.folder / "undone")
        for path in self.source.glob("*.safetensors"):
            assert data(path) == data(self.folder / "undone" / path.name), "undo differs"


def peak_bytes():
    """Largest resident size since `reset_peak`; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's own")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        sides = Sides(Path(temporary))
        sides.source.mkdir()
        write_checkpoint(sides.source)
        num_bytes = sum(path.stat().st_size for path in sides.source.glob("*.safetensors"))
        times = interleave({name: name for name in ("copy", "permute")}, args.rounds, sides.seconds)
        sides.check_undone()
    rows = compare(times, "copy")
    print_table(rows)
    figures = {
        "gigabytes": round(num_bytes / 1e9, 3),
        "largest_shard_mb": round(num_bytes / NUM_SHARDS / 1e6, 1),
        "peak_added_mb": round(max(sides.peaks) / 1e6, 1),
        "is_undone_identical": True,
    }
    print("  ".join(f"{key} {value}" for key, value in figures.items()))
    finish("permute_speed", "copy", rows, vars(args), **figures)


def data(path):
    """A file's bytes after its header, whose white space may differ."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


if __name__ == "__main__":
    main()
