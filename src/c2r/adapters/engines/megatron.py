"""Megatron-Core: flags for group-limited routing, and router traces.

Flags of `transformer_config.py`, traces of `megatron/core/transformer/moe/router_trace.py` at
059f0f5c. Megatron places experts in the order of their ids: the plan's placement comes to it as a
permuted checkpoint.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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
from c2r.errors import InputError, PlanError, one_line
from c2r.plans import Plan

_INDICES = b'"top_indices":'


def encode(slots: SlotMap, plan: Plan, _num_layers: int | None) -> str:
    """Flags, one to a line, that limit each token to as few ranks as the plan sends it to.

    The groups are the ranks, and a token may use M of them: the smallest divisor of k that is not
    below the copies that the plan predicts, or the largest that the ranks allow. This replaces
    C2R's lists by Megatron's own limit; the permuted checkpoint alone, without these flags, keeps
    the model's function.

    Raises:
        PlanError: replicas, or layers with different k; Megatron has neither.
    """
    top_ks = {layer.top_k for layer in plan.layers}
    if slots.num_replicas or len(top_ks) > 1:
        raise PlanError(
            "Megatron holds each expert once and has one k for all layers; plan without replicas"
        )
    (top_k,) = top_ks
    predicted = plan.provenance.get("predicted", {})
    copies = float(predicted.get("copies", top_k))
    limits = [m for m in range(1, slots.num_ranks + 1) if top_k % m == 0]
    flags = {
        "--num-experts": slots.num_experts,
        "--expert-model-parallel-size": slots.num_ranks,
        "--moe-router-topk": top_k,
        "--moe-router-num-groups": slots.num_ranks,
        "--moe-router-group-topk": next((m for m in limits if m >= copies), limits[-1]),
        "--moe-token-dispatcher-type": "flex",
    }
    return "".join(f"{flag} {value}\n" for flag, value in flags.items())


def commands(start: Start) -> tuple[Command, ...]:
    """How to start training on the permuted and converted checkpoint."""
    num_nodes = start.topology.num_nodes
    return on_each_node(
        start.topology,
        f"torchrun --nproc-per-node {start.topology.ranks_per_node}",
        lambda node: (
            f"--nnodes {num_nodes} --node-rank {node} --master-addr {FIRST_NODE} "
            "--master-port 29500"
        ),
        f" pretrain_gpt.py $(cat {shlex.quote(str(start.placement))})",
    )


def read_traces(path: Path, bad: BadRecords, part: Part = WHOLE) -> Iterator[Record]:
    """The tokens in a part of one rank's `router_trace_rank*.jsonl`, line by line.

    A line is in the part that holds its first byte. Records of multi-token-prediction blocks are
    left out: their numbers are not the decoder's.

    Raises `InputError` if the file cannot be read, or at the first bad record.
    """
    try:
        with path.open("rb") as file:
            first, last = part.of(path.stat().st_size)
            whence = f" after byte {first:,}" if first else ""
            for number, line in enumerate(_lines(file, first, last), 1):
                where = f"{path}, line {number}{whence}"
                try:
                    record = _parse(line)
                except (
                    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
                ) as error:  # fmt: skip
                    bad.report(where, f"not a record of a router trace ({one_line(error)})")
                    continue
                if record is not None:
                    yield Record(where, *record)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None


def _lines(file: IO[bytes], first: int, last: int) -> Iterator[bytes]:
    """The lines that begin between two bytes."""
    file.seek(max(first - 1, 0))
    if first:
        file.readline()  # it began before
    while file.tell() < last and (line := file.readline()):
        yield line


def _parse(line: bytes) -> tuple[int, npt.NDArray[np.int64]] | None:
    """Layer and ids of a line; None for an empty one and for prediction blocks.

    The ids are most of a line, and its JSON parser would make an object of each: they are cut out
    and read as an array.
    """
    if not line.strip():
        return None
    key = line.find(_INDICES)
    start = line.find(b"[", key)
    end = line.find(b"]]", start) + 2 if line[start : start + 2] == b"[[" else start + 2
    if key < 0 or end < start + 2:
        raise ValueError("no top_indices, or they are not lists")
    head: dict[str, Any] = json.loads(line[:start] + b"0" + line[end:])
    if head.get("block", "decoder") != "decoder":
        return None
    num_tokens, top_k = int(head["num_tokens"]), int(head["topk"])
    rows = line[start:end]
    ids = _integers(rows.translate(None, b"[] "))
    if num_tokens * top_k != len(ids) or rows.count(b"[") != num_tokens + 1:
        raise ValueError(
            f"{len(ids)} ids in {rows.count(b'[') - 1} rows, where num_tokens is {num_tokens} and "
            f"topk {top_k}"
        )
    return int(head["layer"]), ids.reshape(num_tokens, top_k)


def _integers(text: bytes) -> npt.NDArray[np.int64]:
    if text.translate(None, b"0123456789,-"):
        raise ValueError("top_indices holds something else than integers")
    if not text:
        return np.empty(0, dtype=np.int64)
    return np.fromstring(text.decode("ascii"), dtype=np.int64, sep=",")


ENGINE = Engine(
    name=ExportFormat.MEGATRON,
    encode=encode,
    decode=None,
    release="Megatron-LM core_v0.19.0",
    commands=commands,
    loads_placement=False,
    note=(
        "convert the permuted checkpoint with Megatron-Bridge, and add your own arguments. The "
        "flags replace C2R's lists by Megatron's own limit, whose groups are the ranks of the "
        "permuted checkpoint; leave them out to keep the model's function. Dispatcher `flex` sends "
        "a token once to each rank; `alltoall` sends it once for each expert and `allgather` to "
        "all: there the placement saves no row"
    ),
)
TRACE_FORMAT = TraceFormat(
    name=ImportFormat.MEGATRON_TRACE, pattern="router_trace_rank*.jsonl", read=read_traces
)
