"""vllm-ascend: the expert map that `--additional-config` names (merged; devices list experts)."""

import json
import shlex

import numpy as np

from c2r.adapters.engines.engine import Command, Engine, Start
from c2r.adapters.engines.slots import SlotMap
from c2r.adapters.engines.vllm import serve
from c2r.adapters.formats import ExportFormat
from c2r.errors import InputError
from c2r.plans import Plan


def encode(slots: SlotMap, _plan: Plan, _num_layers: int | None) -> str:
    """The JSON file: MoE layers, their devices, and the experts on each."""
    layers = [
        {
            "layer_id": position,
            "device_count": slots.num_ranks,
            "device_list": [
                {"device_id": rank, "device_expert": experts.tolist()}
                for rank, experts in enumerate(np.split(slots.layers[number], slots.num_ranks))
            ],
        }
        for position, number in enumerate(sorted(slots.layers))
    ]
    return json.dumps({"moe_layer_count": len(layers), "layer_list": layers}) + "\n"


def decode(text: str, expected: SlotMap) -> SlotMap:
    """The slots in a file; `expected` tells the layer numbers.

    Raises `InputError` if layers or devices are missing.
    """
    document = json.loads(text)
    rows = []
    for position, layer in enumerate(document["layer_list"]):
        devices = sorted(layer["device_list"], key=lambda device: device["device_id"])
        ids = [device["device_id"] for device in devices]
        if layer["layer_id"] != position or ids != list(range(layer["device_count"])):
            raise InputError(f"layer {position} of the file lacks a device or is out of order")
        rows.append([expert for device in devices for expert in device["device_expert"]])
    if not len(rows) == document["moe_layer_count"] == len(expected.layers):
        raise InputError(f"the file has {len(rows)} layers, expected {len(expected.layers)}")
    layers = {
        number: np.asarray(row, dtype=np.int64)
        for number, row in zip(sorted(expected.layers), rows, strict=True)
    }
    return SlotMap(
        num_ranks=int(document["layer_list"][0]["device_count"]),
        num_experts=max(map(max, rows)) + 1,
        layers=layers,
    )


def commands(start: Start) -> tuple[Command, ...]:
    """How to start the engine."""
    config = {"eplb_config": {"expert_map_path": str(start.placement)}}
    return serve(start, f"--additional-config {shlex.quote(json.dumps(config))}")


ENGINE = Engine(
    name=ExportFormat.VLLM_ASCEND,
    encode=encode,
    decode=decode,
    release="vllm-ascend 0.23.0",
    commands=commands,
    suffix=".json",
    note=(
        "fewer rows are sent where MoE communication is an all-to-all; with all-gather the "
        "placement saves no row. vllm-ascend announces that it will drop expert_map_path in 0.25.1"
    ),
)
