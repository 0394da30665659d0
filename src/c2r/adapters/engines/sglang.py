"""SGLang: the map that `--init-expert-location` loads, and the recorder's per-token dumps.

Formats of `sglang/srt/eplb`: `expert_location.py` at 01fec5c2, `expert_distribution.py` at
02295fe5.
"""

import json
import pickle
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
from c2r.errors import InputError, one_line
from c2r.plans import Plan

_KEY = "physical_to_logical_map"


def encode(slots: SlotMap, _plan: Plan, num_layers: int | None) -> str:
    """The JSON file: one row for each layer of the model, dense ones in the order of the ids.

    Args:
        slots: of the MoE layers.
        num_layers: layers of the model; None ends with the last MoE layer.

    Raises:
        InputError: the model has fewer layers than the plan names.
    """
    last = max(slots.layers) + 1
    num_layers = last if num_layers is None else num_layers
    if num_layers < last:
        raise InputError(
            f"the plan names layer {last - 1}, but the model has {num_layers} layers; give the "
            "model that was profiled"
        )
    identity = np.arange(slots.num_slots) % slots.num_experts
    rows = [slots.layers.get(number, identity).tolist() for number in range(num_layers)]
    return json.dumps({_KEY: rows}) + "\n"


def decode(text: str, expected: SlotMap) -> SlotMap:
    """The slots in a file; `expected` tells what the file does not: ranks and MoE layers.

    Raises `InputError` if the file is not of this format.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or set(document) != {_KEY}:
        raise InputError(f"SGLang takes an object with the one key {_KEY}")
    rows = np.asarray(document[_KEY], dtype=np.int64)
    if rows.ndim != 2 or rows.shape[1] % expected.num_ranks:
        raise InputError(f"{_KEY} must be [layers, slots], its slots a multiple of the ranks")
    return SlotMap(
        num_ranks=expected.num_ranks,
        num_experts=int(rows.max()) + 1,
        layers={number: rows[number] for number in expected.layers},
    )


def commands(start: Start) -> tuple[Command, ...]:
    """How to start the engine."""
    num_ranks, num_nodes = start.topology.num_ranks, start.topology.num_nodes
    line = (
        f"python -m sglang.launch_server --model-path {start.quoted_model} --tp-size {num_ranks} "
        f"--ep-size {num_ranks} --moe-a2a-backend deepep"
    )
    if start.placement is not None:
        line += (
            f" --init-expert-location {shlex.quote(str(start.placement))} "
            f"--ep-num-redundant-experts {start.num_replicas} --ep-dispatch-algorithm static"
        )
    return on_each_node(
        start.topology,
        line,
        lambda node: f"--nnodes {num_nodes} --node-rank {node} --dist-init-addr {FIRST_NODE}:20000",
    )


def read_per_token(path: Path, bad: BadRecords, part: Part = WHOLE) -> Iterator[Record]:
    """The tokens in a part of one rank's `expert_distribution_recorder_*.pt` of mode `per_token`.

    The file is mapped, not read at once, and only tensors and plain values are unpickled. Its ids
    are slots, which its own map turns into experts.

    Raises:
        InputError: not such a file, or one of a mode that holds loads only.
    """
    dump = _load(path)
    stored = dump.get("last_physical_to_logical_map")
    slots = _integers(stored, 2, path)
    if slots is None:
        raise InputError(f"{path} has no last_physical_to_logical_map of [layers, slots]")
    for index in range(*part.of(len(dump["records"]))):
        record = dump["records"][index]
        where = f"{path}, record {index}"
        ids = record.get("topk_ids_of_layer")
        if ids is None and "global_physical_count" in record:
            raise _loads_only(path, "per_pass")
        shape = list(getattr(ids, "shape", ()))
        ids = _integers(ids, 3, path)
        if ids is None or len(ids) != len(slots):
            bad.report(where, f"topk_ids_of_layer is {shape}, of {len(slots)} layers in the map")
            continue
        for number, layer_ids in enumerate(ids):
            yield Record(where, number, layer_ids, slots[number], len(slots))


def _integers(value: Any, num_dims: int, path: Path) -> npt.NDArray[Any] | None:
    """A tensor of integers as numpy; None where it is something else, or larger than its file."""
    import torch

    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
    if not isinstance(value, torch.Tensor) or value.dtype not in kinds or value.ndim != num_dims:
        return None
    if value.layout != torch.strided or value.device.type != "cpu":
        return None
    # One number that is stored can stand for any shape.
    if value.nbytes > path.stat().st_size:
        return None
    found: npt.NDArray[Any] = value.numpy()
    return found


def _load(path: Path) -> dict[str, Any]:
    import torch

    try:
        dump: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError,
        TypeError, AttributeError, AssertionError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        reason = one_line(error)
        raise InputError(
            f"{path} cannot be read as tensors and plain values ({reason}); nothing else is "
            "unpickled, give a dump that SGLang's recorder wrote"
        ) from None
    if isinstance(dump, dict) and "logical_count" in dump:
        raise _loads_only(path, "stat")
    records = dump.get("records") if isinstance(dump, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path} is no dump of SGLang's recorder: it has no list of records")
    return dict(dump)


def _loads_only(path: Path, mode: str) -> InputError:
    return InputError(
        f"{path} is of recorder mode {mode}: it holds how often each expert was used, not which "
        "were used together; record with --expert-distribution-recorder-mode per_token"
    )


ENGINE = Engine(
    name=ExportFormat.SGLANG,
    encode=encode,
    decode=decode,
    release="SGLang 0.5.23",
    commands=commands,
    note=(
        "fewer rows are sent with --moe-a2a-backend deepep or mooncake, which send a token once to "
        "each rank; the default backend `none` gathers all tokens on all ranks: there the "
        "placement saves no row"
    ),
)
TRACE_FORMAT = TraceFormat(
    name=ImportFormat.SGLANG_PER_TOKEN,
    pattern="expert_distribution_recorder_*.pt",
    read=read_per_token,
)
