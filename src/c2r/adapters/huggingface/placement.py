"""Where a model runs: chosen before it is loaded, and told afterwards."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from torch import nn

from c2r.adapters.huggingface.folders import skeleton_of
from c2r.adapters.huggingface.models import dtype_name
from c2r.adapters.huggingface.sources import Source, find_source
from c2r.errors import InputError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")

_SHARE = 0.85  # of free memory that weights may take; the rest is for activations


def default_device(place: int = 0) -> torch.device:
    """The accelerator numbered `place`, or the processors where there is none.

    Raises `InputError` where there are accelerators, but not as many.
    """
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind, number = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    assert kind is not None, "one is available"
    if place >= number:
        raise InputError(
            f"process {place} of this machine has no device of its own, for there are {number}; "
            f"start {number} processes on each machine, or give --device cpu"
        )
    return torch.device(kind.type, place)


def read_device(text: str) -> torch.device:
    """The device that a user names. Raises `InputError` where this machine does not have it."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError(
            f"--device {text} is unknown; write cpu, cuda, cuda:1 or another name of torch's"
        ) from None
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    number = 0 if found is None else torch.accelerator.device_count()
    if device.type in ("cpu", "meta"):
        return device
    if found is None or device.type != found.type or (device.index or 0) >= number:
        has = f"{number} of {found.type}" if found is not None else "none but cpu"
        raise InputError(f"there is no device {text} here ({has}); choose another with --device")
    return torch.device(device.type, device.index or 0)


def fits(num_bytes: int, device: torch.device) -> bool:
    """Whether weights of so many bytes leave room to work in the free memory of a device."""
    free = get_max_memory()
    key = "cpu" if device.type == "cpu" else "mps" if device.type == "mps" else device.index
    return key not in free or num_bytes <= _SHARE * int(free[key])


def weight_bytes(source: str | Source, dtype: torch.dtype | None, **origin: Any) -> int:
    """What the weights of a model folder or hub name will take in memory.

    Args:
        source: the folder or name, or what `find_source` found there.
        dtype: that they are loaded in; None for that of the checkpoint.
        origin: `revision` and `trust_remote_code`, as for `load_model`.

    Raises:
        InputError, ModelError: as `load_model`.
    """
    found = find_source(source, **origin)
    skeleton = skeleton_of(found.location, **found.options)
    if getattr(skeleton.config, "quantization_config", None) is not None:
        return sum(path.stat().st_size for path in Path(found.location).glob("*.safetensors"))
    each = dtype or skeleton.config.dtype or torch.float32
    number = sum(parameter.numel() for parameter in skeleton.parameters())
    return int(number * each.itemsize)


def read_device_map(text: str) -> str | dict[str, Any]:
    """A device map as a user writes it: one of accelerate's names, or JSON of parts and devices.

    Raises `InputError` for another text.
    """
    if text in DEVICE_MAPS:
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str | int) for v in found.values()):
        raise InputError(
            f"--device-map {text} is unknown; choose {', '.join(DEVICE_MAPS)}, or write JSON such "
            'as {"model.embed_tokens": 0, "model.layers": "cpu", "": "disk"}'
        )
    return found


def describe_placement(model: nn.Module) -> str:
    """Where and in what a model runs, as `cuda:0 in bfloat16`."""
    parts = getattr(model, "hf_device_map", None) or {}
    number = Counter(_name(device) for device in parts.values())
    if len(number) > 1:
        where = " and ".join(f"{name} ({count} parts)" for name, count in number.items())
    else:
        where = next(iter(number), None) or _name(next(model.parameters()).device)
    return f"{where} in {dtype_name(model) or 'its own type'}"


def _name(device: Any) -> str:
    if isinstance(device, int):
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return f"{'cuda' if kind is None else kind.type}:{device}"
    return str(device)
