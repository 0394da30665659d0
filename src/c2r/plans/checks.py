"""What must hold of a plan that a file brings, checked once when it is read."""

import math
import re
from typing import Any

import numpy as np

from c2r.policy_names import STRENGTH_NAMES
from c2r.types import Int

_MOST_SIZE = 65_536  # ranks, experts and layers: more would be of no machine, and fill memory
_MOST_CHARACTERS = 1000


def check_plan(plan: Any) -> None:
    """Raises `ValueError` unless the plan can be carried out: shapes, ranges, and known names."""
    _require(isinstance(plan.provenance, dict), "provenance")
    _require(bool(plan.layers), "a plan without layers")
    _require(plan.topology.num_ranks <= _MOST_SIZE, f"num_ranks {plan.topology.num_ranks}")
    for layer in plan.layers:
        _check_layer(layer, plan.topology.num_ranks)


def _check_layer(layer: Any, num_ranks: int) -> None:
    size = layer.num_experts
    _require(1 <= layer.top_k <= size <= _MOST_SIZE, f"top_k {layer.top_k} of {size} experts")
    _require(len(layer.name) <= _MOST_CHARACTERS, "a layer's name is too long")
    numbers = re.findall(r"\d+", layer.name)
    _require(all(len(n) < 6 for n in numbers), f"layer {layer.name} has too large a number")
    _require(layer.policy in STRENGTH_NAMES, f"unknown policy {layer.policy}")
    finite = math.isfinite(layer.strength) and layer.strength >= 0
    _require(finite, f"strength {layer.strength}")
    _require(layer.placement.shape == (size,), f"placement of shape {layer.placement.shape}")
    _check_ids("placement", layer.placement, num_ranks)
    if layer.partners.size:
        _require(len(layer.partners) == size, f"partners of shape {layer.partners.shape}")
        _check_ids("partners", layer.partners, size)
        own = np.arange(size)[:, None]
        _require(not (layer.partners == own).any(), "an expert is its own partner")
        _check_distinct("partners", layer.partners)
    _require(layer.partners.ndim == 2, f"partners of shape {layer.partners.shape}")
    if layer.replicas.size:
        _require(len(layer.replicas) == num_ranks, f"replicas of shape {layer.replicas.shape}")
        _check_ids("replicas", layer.replicas, size)
        is_own = layer.placement[layer.replicas] == np.arange(num_ranks)[:, None]
        _require(not is_own.any(), "a rank has a replica of its own expert")
        _check_distinct("replicas", layer.replicas)


def _check_ids(name: str, ids: Int, end: int) -> None:
    _require(ids.min() >= 0 and ids.max() < end, f"{name} are not all in 0 to {end - 1}")


def _check_distinct(name: str, rows: Int) -> None:
    _require(rows.ndim == 2, f"{name} of shape {rows.shape}")
    _require(bool((np.diff(np.sort(rows, axis=1), axis=1) > 0).all()), f"{name} repeat an id")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
