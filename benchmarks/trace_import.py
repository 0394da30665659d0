"""How fast traces of engines become a profile, and that memory does not grow with them.

    python benchmarks/trace_import.py

Traces of E = 128, k = 8, 48 layers at two sizes from four ranks: .npz, the format that SGLang's
recorder writes, and Megatron's JSON lines. The choices are synthetic and distinct: the worst case,
in which the routing sets of a profile are full from the start. Each import runs with two workers;
the anonymous memory (RssAnon) of the larger is sampled while it runs, since pages of mapped files
are the system's to drop. The goal is 2 million tokens x 48 layers a minute.
Prints a table and a JSON line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_EXPERTS, TOP_K = 128, 8
FORMATS = ("npz", "sglang-per-token", "megatron-trace")
RECORD_TOKENS = 8_192
NUM_FILES = 4  # ranks
GOAL = 2e6 * 48 / 60


def choices(pool, rng, num_tokens):
    """Distinct ids in every row: rows of a pool, renumbered anew for each call."""
    return rng.permutation(NUM_EXPERTS)[pool[rng.integers(len(pool), size=num_tokens)]]


def write(format_, folder, num_tokens, num_layers):
    rng = np.random.default_rng(0)
    scores = rng.random((65_536, NUM_EXPERTS))
    pool = np.argpartition(scores, TOP_K, axis=1)[:, :TOP_K].astype(np.int16)
    writers = {"npz": write_npz, "sglang-per-token": write_sglang}
    writers.get(format_, write_megatron)(folder, pool, rng, num_tokens, num_layers)


def write_npz(folder, pool, rng, num_tokens, num_layers):
    for part in range(NUM_FILES):
        arrays = {
            f"layers.{number}": choices(pool, rng, num_tokens // NUM_FILES).astype(np.uint8)
            for number in range(num_layers)
        }
        np.savez(folder / f"trace{part}.npz", **arrays)


def write_sglang(folder, pool, rng, num_tokens, num_layers):
    import torch

    for rank in range(NUM_FILES):
        records = []
        for number in range(num_tokens // RECORD_TOKENS // NUM_FILES):
            ids = [choices(pool, rng, RECORD_TOKENS) for _ in range(num_layers)]
            records.append(
                {
                    "forward_pass_id": number,
                    "rank": rank,
                    "topk_ids_of_layer": torch.from_numpy(np.stack(ids).astype(np.int32)),
                }
            )
        slots = torch.arange(NUM_EXPERTS).repeat(num_layers, 1)
        dump = {"records": records, "last_physical_to_logical_map": slots}
        torch.save(dump, folder / f"expert_distribution_recorder_1.0_{rank}.pt")


def write_megatron(folder, pool, rng, num_tokens, num_layers):
    for rank in range(NUM_FILES):
        with (folder / f"router_trace_rank{rank}.jsonl").open("w") as file:
            for step in range(num_tokens // RECORD_TOKENS // NUM_FILES):
                for layer in range(num_layers):
                    record = {"step": step, "block": "decoder", "layer": layer, "rank": rank}
                    record |= {"num_tokens": RECORD_TOKENS, "topk": TOP_K}
                    record["top_indices"] = choices(pool, rng, RECORD_TOKENS).tolist()
                    file.write(json.dumps(record) + "\n")


def measure(format_, folder):
    """Seconds and peak anonymous bytes of one import in a process of its own."""
    command = [sys.executable, __file__, "--read", format_, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        pids = [process.pid, *children(process.pid)]
        peak = max(peak, *map(anonymous_bytes, pids))
        time.sleep(0.05)
    assert process.returncode == 0, "the import failed"
    return float(process.stdout.read()), peak


def children(pid):
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def anonymous_bytes(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(x.split()[1]) for x in lines if x.startswith("RssAnon")), 0)


def read(format_, folder):
    from c2r.adapters.engines import ImportFormat, import_traces

    start = time.perf_counter()
    profile = import_traces(ImportFormat(format_), [folder], NUM_EXPERTS, num_workers=2).profile
    seconds = time.perf_counter() - start
    assert all(layer.load.sum() == layer.num_tokens * TOP_K for layer in profile.layers)
    print(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--tokens", type=int, nargs=2, default=[524_288, 2_097_152])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read[0], Path(args.read[1]))
        return
    rows = []
    for format_ in FORMATS:
        for num_tokens in args.tokens:
            with tempfile.TemporaryDirectory() as folder:
                write(format_, Path(folder), num_tokens, args.layers)
                size = sum(path.stat().st_size for path in Path(folder).iterdir())
                runs = [measure(format_, folder) for _ in range(args.rounds)]
            rates = sorted(num_tokens * args.layers / seconds for seconds, _ in runs)
            rows.append(
                {
                    "format": format_,
                    "tokens": num_tokens,
                    "gigabytes": round(size / 1e9, 2),
                    "million_layer_tokens_per_second": [round(rate / 1e6, 2) for rate in rates],
                    "of_goal_median": round(float(np.median(rates)) / GOAL, 2),
                    "peak_anonymous_mb": round(max(peak for _, peak in runs) / 1e6),
                }
            )
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    result = {
        "benchmark": "trace_import",
        "goal_million_layer_tokens_per_second": GOAL / 1e6,
        "settings": {"experts": NUM_EXPERTS, "k": TOP_K, "layers": args.layers},
        "synthetic": True,
        "rows": rows,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
