"""vLLM: the map of an open proposal, and the routed experts that requests return.

vLLM (main at 04d26335) has no merged way to load a first placement; the shape here is that of pull
request 49572 (`eplb_config.initial_expert_map_path`). Permuting the checkpoint works today.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from c2r.adapters.engines.arrays import read_array_blocks
from c2r.adapters.engines.engine import WHOLE, Engine, Part, TraceFormat
from c2r.adapters.engines.records import BadRecords, Record
from c2r.adapters.engines.slots import SlotMap
from c2r.adapters.formats import ExportFormat, ImportFormat
from c2r.errors import InputError
from c2r.plans import Plan


def encode(slots: SlotMap, _plan: Plan, _num_layers: int | None) -> str:
    """The JSON file of the proposal: one row of slots for each MoE layer, in order."""
    return json.dumps([slots.layers[number].tolist() for number in sorted(slots.layers)]) + "\n"


def decode(text: str, expected: SlotMap) -> SlotMap:
    """The slots in a file; `expected` tells ranks and layer numbers. Raises `InputError`."""
    rows = np.asarray(json.loads(text), dtype=np.int64)
    if rows.ndim != 2 or len(rows) != len(expected.layers):
        raise InputError(f"expected a list of {len(expected.layers)} lists of slots")
    return SlotMap(
        num_ranks=expected.num_ranks,
        num_experts=int(rows.max()) + 1,
        layers=dict(zip(sorted(expected.layers), rows, strict=True)),
    )


def launch_line(slots: SlotMap, path: Path) -> str:
    """How to start a vLLM that has the proposal."""
    config = {
        "initial_expert_map_path": str(path),
        "num_redundant_experts": slots.num_replicas,
        "step_interval": 1_000_000_000,  # never rebalance
    }
    return (
        f"vllm serve MODEL --data-parallel-size {slots.num_ranks} --enable-expert-parallel "
        "--all2all-backend deepep_high_throughput --enable-eplb "
        f"--eplb-config '{json.dumps(config)}'"
    )


def read_routed_experts(path: Path, bad: BadRecords, part: Part = WHOLE) -> Iterator[Record]:
    """The tokens in a part of a .npy or .npz of `CompletionOutput.routed_experts`.

    Arrays are `[tokens, layers, k]`, and read block by block. Raises `InputError` if the file
    cannot be read.
    """
    for name, block in read_array_blocks(path, part):
        if block.ndim != 3:
            bad.report(f"{path}, {name}", f"shape {list(block.shape)}, not [tokens, layers, k]")
            continue
        for layer in range(block.shape[1]):
            yield Record(f"{path}, {name}", layer, block[:, layer], None, block.shape[1])


ENGINE = Engine(
    name=ExportFormat.VLLM,
    encode=encode,
    decode=decode,
    launch_line=launch_line,
    note=(
        "this is the shape of open proposal 49572, which no released vLLM loads; c2r permute works "
        "with every vLLM. The plan saves traffic with the deepep backends; with the default "
        "allgather_reducescatter no placement changes it"
    ),
)
TRACE_FORMAT = TraceFormat(
    name=ImportFormat.VLLM_ROUTED, pattern="*.np[yz]", read=read_routed_experts
)
