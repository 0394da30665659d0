"""Routing from a file that another program recorded, of a model that is not here."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.adapters.engines.arrays import read_arrays
from c2r.adapters.engines.imports import MOST_EXPERTS
from c2r.errors import InputError
from c2r.profiling import CollaborationProfile, IdProfileBuilder
from c2r.timing.placing import Placing, place
from c2r.timing.recording import UNCONSTRAINED, RecordedRouting, Recording, spread
from c2r.types import Bool, Float32, Int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingFile:
    """What a file says.

    Attributes:
        expert_ids: `[layers, tokens, k]` int64.
        weights: `[layers, tokens, k]` float32; 1 / k where the file has none.
        is_planned: `[tokens]`, those to plan from; the others are timed.
    """

    expert_ids: Int
    weights: Float32
    is_planned: Bool


def read_routing(path: Path, num_layers: int | None = None) -> RoutingFile:
    """The routing in a .npz file.

    It holds `experts` `[tokens, layers, k]`, or an array `[tokens, k]` for each layer, the last
    number in its name. `weights`, of the shape of `experts`, are the factors of the outputs.
    `lengths` `[sequences]` are the tokens of each sequence in order: then every other sequence is
    planned from, otherwise the first half of the tokens.

    Args:
        path: the file.
        num_layers: how many layers to keep, spread evenly; None keeps all.

    Raises:
        InputError: the file cannot be read, or its arrays do not fit together.
    """
    arrays = read_arrays(path)
    experts = _experts(arrays, path)
    weights = arrays.get("weights")
    if weights is None:
        weights = np.full(experts.shape, 1 / experts.shape[2], np.float32)
    if weights.shape != experts.shape or weights.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: weights are {weights.dtype} {list(weights.shape)}, experts "
            f"{list(experts.shape)}; give numbers of the same shape"
        )
    if not np.isfinite(weights).all():
        raise InputError(f"{path}: a weight is no finite number; record them again")
    kept = spread(experts.shape[1], num_layers)
    ids, factors = (
        np.ascontiguousarray(array[:, kept].swapaxes(0, 1)) for array in (experts, weights)
    )
    return RoutingFile(
        expert_ids=ids.astype(np.int64),
        weights=factors.astype(np.float32),
        is_planned=_is_planned(arrays.get("lengths"), len(experts), path),
    )


def record_file(
    routing: RoutingFile,
    num_tokens: int,
    calibration_tokens: int,
    placing: Placing,
) -> Recording:
    """Plans from one part of a file's tokens, and keeps tokens of the other part to be timed.

    Args:
        routing: what the file says.
        num_tokens: tokens to keep, drawn evenly from all that are not planned from.
        calibration_tokens: tokens to plan from, at most.
        placing: where and how the experts are placed.

    Raises:
        InputError: there are fewer tokens than that.
        PlanError: as `place`.
    """
    num_experts = int(routing.expert_ids.max()) + 1
    planned, timed = (np.flatnonzero(part) for part in (routing.is_planned, ~routing.is_planned))
    if len(timed) < num_tokens:
        raise InputError(
            f"the file has {len(timed)} tokens to time beside those to plan from, but {num_tokens} "
            "are needed; give a longer trace, or fewer --tokens"
        )
    planned = planned[spread(len(planned), min(calibration_tokens, len(planned)))]
    timed = timed[spread(len(timed), num_tokens)]
    profile = _profile(routing.expert_ids[:, planned], num_experts)
    plan, max_load = place(profile, placing)
    recorded = RecordedRouting(
        loss=None,
        expert_ids=routing.expert_ids[:, timed],
        weights=routing.weights[:, timed],
    )
    return Recording.of_plan(plan, max_load, {UNCONSTRAINED: recorded})


def _experts(arrays: dict[str, npt.NDArray[Any]], path: Path) -> npt.NDArray[Any]:
    """`[tokens, layers, k]`."""
    if "experts" in arrays:
        experts = arrays["experts"]
    else:
        found = {
            int(re.findall(r"\d+", name)[-1]): array
            for name, array in arrays.items()
            if re.search(r"\d", name)
        }
        if len({array.shape for array in found.values()}) != 1:
            raise InputError(
                f"{path} holds {', '.join(arrays) or 'nothing'}; give experts [tokens, layers, k], "
                "or an array [tokens, k] for each layer, all of one shape"
            )
        experts = np.stack([found[layer] for layer in sorted(found)], axis=1)
    if experts.ndim != 3 or experts.dtype.kind not in "iu":
        raise InputError(
            f"{path}: experts are {experts.dtype} {list(experts.shape)}; give integers "
            "[tokens, layers, k]"
        )
    if not experts.size or not 0 <= experts.min() <= experts.max() < MOST_EXPERTS:
        ids = f"{experts.min()} to {experts.max()}" if experts.size else "none"
        raise InputError(f"{path}: experts are {ids}; give ids from 0 below {MOST_EXPERTS:,}")
    return experts


def _is_planned(lengths: npt.NDArray[Any] | None, num_tokens: int, path: Path) -> Bool:
    """`[tokens]`."""
    if lengths is None:
        return np.arange(num_tokens) < num_tokens // 2
    is_whole = lengths.ndim == 1 and lengths.dtype.kind in "iu"
    if not is_whole or (lengths < 0).any() or lengths.sum() != num_tokens:
        added = int(lengths.sum()) if is_whole else f"{lengths.dtype} {list(lengths.shape)}"
        raise InputError(
            f"{path}: the lengths add up to {added} tokens, but experts has {num_tokens}; give "
            "the tokens of each sequence"
        )
    is_even: Bool = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    return is_even


def _profile(expert_ids: Int, num_experts: int) -> CollaborationProfile:
    builder = IdProfileBuilder(num_experts)
    for layer, ids in enumerate(expert_ids):
        builder.update(layer, ids)
    return builder.build({layer: f"layers.{layer}" for layer in builder.layers})
