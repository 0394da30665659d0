"""TensorRT-LLM: the static load balancer's file, and raw expert statistics.

Formats of `examples/wide_ep/ep_load_balancer` (README.md at 2a595f81, utils.py at 7ce477f3).
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from c2r.adapters.engines.engine import WHOLE, Command, Engine, Part, Start, TraceFormat
from c2r.adapters.engines.records import BadRecords, Record
from c2r.adapters.engines.slots import SlotMap
from c2r.adapters.formats import ExportFormat, ImportFormat
from c2r.errors import InputError, one_line
from c2r.plans import Plan

_BLOCK_TOKENS = 65_536
_KEY = re.compile(r"^(\d+)_(\d+)$")  # iteration and layer


def encode(slots: SlotMap, _plan: Plan, _num_layers: int | None) -> str:
    """The YAML file that `moe_config.load_balancer` names; keys are layer numbers of the model."""
    lines = ["initial_global_assignments:"]
    lines += [f"  {number}: {slots.layers[number].tolist()}" for number in sorted(slots.layers)]
    lines += [f"num_slots: {slots.num_slots}", "layer_updates_per_iter: 0"]
    return "\n".join(lines) + "\n"


def decode(text: str, expected: SlotMap) -> SlotMap:
    """The slots in a file; `expected` tells the ranks. Raises `InputError`."""
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError("the file is no YAML") from None
    if document["layer_updates_per_iter"] != 0:
        raise InputError("layer_updates_per_iter is not 0: the engine would change the placement")
    layers = {
        int(number): np.asarray(row, dtype=np.int64)
        for number, row in document["initial_global_assignments"].items()
    }
    if any(len(row) != document["num_slots"] for row in layers.values()):
        raise InputError(f"a layer does not fill the {document['num_slots']} slots")
    return SlotMap(
        num_ranks=expected.num_ranks,
        num_experts=max(int(row.max()) for row in layers.values()) + 1,
        layers=layers,
    )


def commands(start: Start) -> tuple[Command, ...]:
    """How to start the engine; it ignores the file where attention is not data-parallel."""
    num_ranks, num_nodes = start.topology.num_ranks, start.topology.num_nodes
    config = {"backend": "CUTLASS", "load_balancer": str(start.placement)}
    options = shlex.quote(json.dumps({"enable_attention_dp": True, "moe_config": config}))
    line = (
        f"trtllm-serve {start.quoted_model} --tp_size {num_ranks} --ep_size {num_ranks} "
        "--extra_llm_api_options options.yaml"
    )
    written = f"echo {options} > options.yaml"
    if num_nodes == 1:
        return (Command("", f"{written} && {line}"),)
    local = start.topology.ranks_per_node
    launcher = f"srun --mpi=pmix --nodes {num_nodes} --ntasks-per-node {local} trtllm-llmapi-launch"
    return (Command("under SLURM", f"{written} && {launcher} {line} --gpus_per_node {local}"),)


def num_experts(path: Path) -> int | None:
    """E from the `meta_info.json` beside a statistic file; None where there is none."""
    meta = path.parent / "meta_info.json"
    if not meta.is_file():
        return None
    try:
        return int(json.loads(meta.read_text(encoding="utf-8-sig"))["num_experts"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{meta} does not tell num_experts ({one_line(error)})") from None


def read_raw(path: Path, bad: BadRecords, part: Part = WHOLE) -> Iterator[Record]:
    """The tokens in a part of one rank's `rank*_raw.safetensors`.

    It holds `[tokens, k]` by iteration and layer.

    Raises `InputError` if the file cannot be read or holds counts only.
    """
    try:
        with safe_open(path, "numpy") as file:
            keys = list(file.keys())
            for key in keys[slice(*part.of(len(keys)))]:
                where, match = f"{path}, {key}", _KEY.match(key)
                tensor = file.get_slice(key)
                shape = tensor.get_shape()
                if match is None:
                    bad.report(where, "its name is not an iteration and a layer, as 100_3")
                elif len(shape) != 2:
                    raise InputError(
                        f"{where} has shape {shape}: it holds how often each expert was used, not "
                        "which were used together; give the rank*_raw.safetensors files"
                    )
                else:
                    for start in range(0, shape[0], _BLOCK_TOKENS):
                        stop = min(start + _BLOCK_TOKENS, shape[0])
                        yield Record(where, int(match[2]), tensor[start:stop])
    except (OSError, SafetensorError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; give a safetensors file") from None


ENGINE = Engine(
    name=ExportFormat.TENSORRT_LLM,
    encode=encode,
    decode=decode,
    release="TensorRT-LLM 1.2.1",
    commands=commands,
    note=(
        "fewer rows are sent where an all-to-all sends the tokens, under attention data "
        "parallelism; where they are gathered on all ranks the placement saves no row"
    ),
)
TRACE_FORMAT = TraceFormat(
    name=ImportFormat.TENSORRT_LLM_RAW,
    pattern="rank*_raw.safetensors",
    read=read_raw,
    num_experts=num_experts,
)
