"""How fast traces of engines become a profile, and that memory does not grow with them.

    python benchmarks/trace_import.py
    python benchmarks/trace_import.py --tile routing.npz --gigabytes 10

Traces of E = 128, k = 8, 48 layers at two sizes from four ranks: .npz, the format that SGLang's
recorder writes, and Megatron's JSON lines. The choices are synthetic, 524,288 distinct sets in
every layer: the worst case, in which the sets that a profile keeps are full at once. Each import
runs with two workers, their start included; the anonymous memory (RssAnon) of the larger is sampled
while it runs, since pages of mapped files are the system's to drop. The goal is 2 million tokens x
48 layers a minute.
With `--tile`, one file of vLLM's format is made of the `experts` `[tokens, layers, k]` of a real
trace, repeated, and memory is that of all processes together.
Prints a table and a JSON line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import children, finish, print_table, spread

NUM_EXPERTS, TOP_K = 128, 8
RECORD_TOKENS, NUM_BLOCKS = 8_192, 64
NUM_FILES = 4  # ranks
BLOCKS = []
GOAL = 2e6 * 48 / 60


def choices(step, layer):
    """The ids of a record: one of as many blocks as exceed the sets that a profile keeps."""
    return BLOCKS[(7 * step + layer) % len(BLOCKS)]


def make_blocks():
    rng = np.random.default_rng(0)
    scores = (rng.random((RECORD_TOKENS, NUM_EXPERTS)) for _ in range(NUM_BLOCKS))
    return [np.argpartition(block, TOP_K, axis=1)[:, :TOP_K] for block in scores]


def write_npz(folder, rank, steps, num_layers):
    arrays = {
        f"layers.{layer}": np.concatenate([choices(step, layer).astype(np.uint8) for step in steps])
        for layer in range(num_layers)
    }
    np.savez(folder / f"trace{rank}.npz", **arrays)


def write_sglang(folder, rank, steps, num_layers):
    import torch

    records = [
        {
            "forward_pass_id": step,
            "rank": rank,
            "topk_ids_of_layer": torch.from_numpy(
                np.stack([choices(step, layer) for layer in range(num_layers)]).astype(np.int32)
            ),
        }
        for step in steps
    ]
    slots = torch.arange(NUM_EXPERTS).repeat(num_layers, 1)
    dump = {"records": records, "last_physical_to_logical_map": slots}
    torch.save(dump, folder / f"expert_distribution_recorder_1.0_{rank}.pt")


def write_megatron(folder, rank, steps, num_layers):
    texts = {id(block): json.dumps(np.sort(block, axis=1).tolist()) for block in BLOCKS}
    with (folder / f"router_trace_rank{rank}.jsonl").open("w") as file:
        for step in steps:
            for layer in range(num_layers):
                head = f'{{"step": {step}, "block": "decoder", "layer": {layer}, "rank": {rank}, '
                head += f'"num_tokens": {RECORD_TOKENS}, "topk": {TOP_K}, "top_indices": '
                file.write(f"{head}{texts[id(choices(step, layer))]}}}\n")


WRITERS = {"npz": write_npz, "sglang-per-token": write_sglang, "megatron-trace": write_megatron}


def measure(format_, folder):
    """Of one import: seconds, processor seconds, peak anonymous bytes of a process and of all."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--read", format_, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = peak_of_all = 0
    while process.poll() is None:
        held = [anonymous_bytes(pid) for pid in (process.pid, *children(process.pid))]
        peak, peak_of_all = max(peak, *held), max(peak_of_all, sum(held))
        time.sleep(0.05)
    assert process.returncode == 0, "the import failed"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return float(process.stdout.read()), cpu, peak, peak_of_all


def anonymous_bytes(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(x.split()[1]) for x in lines if x.startswith("RssAnon")), 0)


def tile(routing, gigabytes, path):
    """A file of so many GB of a real trace, over and over; gives its tokens and layers."""
    ids = np.load(routing)["experts"].astype(np.int16)
    num_tokens = int(gigabytes * 1e9 / ids[0].nbytes)
    shape = (num_tokens, *ids.shape[1:])
    tiled = np.lib.format.open_memmap(path, mode="w+", dtype=ids.dtype, shape=shape)
    for start in range(0, num_tokens, len(ids)):
        tiled[start : start + len(ids)] = ids[: num_tokens - start]
    tiled.flush()
    return shape[:2]


def measure_tiled(routing, gigabytes):
    with tempfile.TemporaryDirectory() as folder:
        num_tokens, num_layers = tile(routing, gigabytes, Path(folder) / "routed.npy")
        seconds, cpu, _, peak = measure("vllm-routed", folder)
    millions = num_tokens * num_layers / 1e6
    row = {
        "format": "vllm-routed",
        "tokens": num_tokens,
        "gigabytes": gigabytes,
        "million_layer_tokens_per_second": round(millions / seconds, 2),
        "million_per_processor_second": round(millions / cpu, 2),
        "peak_anonymous_mb_of_all": round(peak / 1e6),
    }
    print_table([row])
    finish("trace_import_tiled", "goal: under 2 GB of memory", [row], {"layers": num_layers})


def read(format_, folder):
    from c2r.adapters.engines import ImportFormat, import_traces

    start = time.perf_counter()
    profile = import_traces(ImportFormat(format_), [folder], NUM_EXPERTS, num_workers=2).profile
    seconds = time.perf_counter() - start
    assert all(layer.load.sum() == layer.num_tokens * layer.top_k for layer in profile.layers)
    print(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--tokens", type=int, nargs=2, default=[524_288, 1_048_576])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tile", type=Path, help=".npz of a real trace")
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read[0], Path(args.read[1]))
        return
    if args.tile:
        measure_tiled(args.tile, args.gigabytes)
        return
    rows = []
    BLOCKS.extend(make_blocks())
    for format_, write in WRITERS.items():
        for num_tokens in args.tokens:
            with tempfile.TemporaryDirectory() as folder:
                for rank in range(NUM_FILES):
                    steps = range(rank, num_tokens // RECORD_TOKENS, NUM_FILES)
                    write(Path(folder), rank, steps, args.layers)
                size = sum(path.stat().st_size for path in Path(folder).iterdir())
                runs = [measure(format_, folder) for _ in range(args.rounds)]
            millions = num_tokens * args.layers / 1e6
            rates = spread([millions / seconds for seconds, *_ in runs])
            rows.append(
                {
                    "format": format_,
                    "tokens": num_tokens,
                    "gigabytes": round(size / 1e9, 2),
                    "million_layer_tokens_per_second": rates,
                    "of_goal_median": round(1e6 * rates["median"] / GOAL, 2),
                    "million_per_processor_second": spread([millions / cpu for _, cpu, *_ in runs]),
                    "peak_anonymous_mb": round(max(peak for _, _, peak, _ in runs) / 1e6),
                }
            )
            print(f"{format_}, {num_tokens:,} tokens: done", file=sys.stderr, flush=True)
    print_table(rows)
    settings = {"experts": NUM_EXPERTS, "k": TOP_K, "layers": args.layers, "rounds": args.rounds}
    goal = f"goal: {GOAL / 1e6} million layer tokens a second"
    finish("trace_import", goal, rows, settings, synthetic=True)


if __name__ == "__main__":
    main()
