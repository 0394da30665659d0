"""What must hold of a layer's counts that a file brings, checked once when it is read."""

from typing import Any

import numpy as np
import numpy.typing as npt

_MOST_TOKENS = 1 << 53  # sums stay exact in float64
_MOST_SIZE = 65_536


def check_layer(layer: Any) -> None:
    """Raises `ValueError` unless shapes, types and ranges of the counts are those of a layer."""
    num_experts, top_k = layer.num_experts, layer.top_k
    _require(1 <= top_k <= num_experts <= _MOST_SIZE, f"top_k {top_k} of {num_experts} experts")
    _require(0 <= layer.num_tokens < _MOST_TOKENS, f"num_tokens {layer.num_tokens}")
    most = layer.num_tokens
    pairs = layer.coactivation
    # Of pair counts alone the tokens are a rounded figure, so only the largest number bounds these.
    _check_counts("coactivation", pairs, (num_experts, num_experts), _MOST_TOKENS)
    _require(np.array_equal(pairs, pairs.T), "coactivation is not symmetric")
    _check_counts("load", layer.load, (num_experts,), _MOST_TOKENS)
    if layer.top1 is not None:
        _check_counts("top1", layer.top1, (num_experts,), most)
    mass = layer.score_mass
    if mass is not None:
        _require(mass.shape == (num_experts, num_experts), f"score_mass of shape {mass.shape}")
        fits = mass.dtype == np.float64 and np.isfinite(mass).all() and (mass >= 0).all()
        _require(bool(fits), "score_mass is not of finite, non-negative float64")
    if layer.sets is not None:
        _check_sets(layer)


def _check_sets(layer: Any) -> None:
    sets = layer.sets
    assert sets is not None
    experts, size = sets.experts, len(sets.experts)
    _require(experts.shape == (size, layer.top_k), f"sets of shape {experts.shape}")
    _require(0 <= sets.num_tokens <= layer.num_tokens, f"sets_num_tokens {sets.num_tokens}")
    _require(1 <= sets.capacity < 1 << 31, f"sets_capacity {sets.capacity}")
    _check_counts("set_counts", sets.counts, (size,), sets.num_tokens)
    _require(
        int(sets.counts.sum()) <= sets.num_tokens, "set_counts are of more tokens than there are"
    )
    drawn = sets.priorities
    if drawn is not None:
        fits = drawn.shape == (size,) and drawn.dtype == np.float64 and np.isfinite(drawn).all()
        _require(bool(fits), "set_priorities are not a finite float64 for each set")


def check_set_ids(experts: npt.NDArray[Any], num_experts: int) -> None:
    """Raises `ValueError` unless the ids of each set, a row, ascend from 0 to E - 1.

    It takes them as narrow as the file holds them: half the memory to go through.
    """
    _require(experts.ndim == 2 and experts.shape[1] > 0, f"sets of shape {experts.shape}")
    _require(experts.dtype == np.int32, f"sets of type {experts.dtype}, not int32")
    if not experts.size:
        return
    # All neighbours of the flat ids at once, but those where a row ends: one pass over memory.
    flat, top_k = experts.ravel(), experts.shape[1]
    ascends = np.empty(flat.size, dtype=np.bool_)
    np.less(flat[:-1], flat[1:], out=ascends[:-1])
    ascends[top_k - 1 :: top_k] = True
    _require(bool(ascends.all()), "the ids of a set do not ascend")
    in_range = experts[:, 0].min() >= 0 and experts[:, -1].max() < num_experts
    _require(bool(in_range), "a set has ids out of range")


def _check_counts(name: str, counts: npt.NDArray[Any], shape: tuple[int, ...], most: int) -> None:
    _require(counts.shape == shape, f"{name} of shape {counts.shape}, not {shape}")
    _require(counts.dtype == np.int64, f"{name} of type {counts.dtype}, not int64")
    if counts.size:
        _require(bool(counts.min() >= 0), f"{name} has counts below 0")
        _require(bool(counts.max() <= most), f"{name} has counts of more than {most} tokens")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
