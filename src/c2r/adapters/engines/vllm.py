"""vLLM: the map of an open proposal, and the routed experts that requests return.

No released vLLM loads a first placement; the shape here is that of pull request 49572
(`eplb_config.initial_expert_map_path`). Permuting the checkpoint works today.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from c2r.adapters.engines.arrays import read_array_blocks
from c2r.adapters.engines.engine import (
    FIRST_NODE,
    WHOLE,
    Command,
    Engine,
    Part,
    Start,
    TraceFormat,
    on_each_node,
)
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


def commands(start: Start) -> tuple[Command, ...]:
    """How to start the engine on a permuted checkpoint."""
    return serve(start, "--all2all-backend deepep_high_throughput")


def serve(start: Start, options: str) -> tuple[Command, ...]:
    """`vllm serve` with these options: attention data-parallel, experts over the same ranks."""
    num_ranks, local = start.topology.num_ranks, start.topology.ranks_per_node
    line = (
        f"vllm serve {start.quoted_model} --data-parallel-size {num_ranks} "
        f"--enable-expert-parallel {options}"
    )

    def of_node(node: int) -> str:
        shared = (
            f"--data-parallel-size-local {local} --data-parallel-address {FIRST_NODE} "
            "--data-parallel-rpc-port 13345"
        )
        return f"{shared} --headless --data-parallel-start-rank {node * local}" if node else shared

    return on_each_node(start.topology, line, of_node)


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
    release="vLLM 0.32.0",
    commands=commands,
    loads_placement=False,
    note=(
        "the file has the shape of open proposal 49572, and no released vLLM loads it; a permuted "
        "checkpoint works with every vLLM. Leave --enable-eplb off, which would move the experts. "
        "Fewer rows are sent with --all2all-backend deepep_high_throughput, which sends a token "
        "once per node, then per rank; deepep_low_latency sends once per expert, and the default "
        "allgather_reducescatter to all ranks: there the placement saves no row"
    ),
)
TRACE_FORMAT = TraceFormat(
    name=ImportFormat.VLLM_ROUTED, pattern="*.np[yz]", read=read_routed_experts
)
