"""Accumulates a profile from chosen ids alone, in constant memory: traces without scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.errors import InputError
from c2r.profiling.profile import CollaborationProfile, LayerProfile
from c2r.profiling.sets import MAX_DISTINCT_SETS, SetCounter
from c2r.types import Int

_CHUNK_TOKENS = 16_384  # the keys of a chunk's pairs stay in the processor's cache


class IdProfileBuilder:
    """Takes the ids that tokens chose, layer by layer in any order, and builds the profile.

    The profile has no score mass, and top-1 counts only where `is_ordered` says that the first id
    of every token is its top-1. At most `capacity` distinct routing sets a layer are kept exactly;
    `seed` draws the sample beyond.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        is_ordered: bool = False,
        seed: int = 0,
        capacity: int = MAX_DISTINCT_SETS,
    ) -> None:
        self._num_experts = num_experts
        self._is_ordered = is_ordered
        self._seed = seed
        self._capacity = capacity
        self._layers: dict[int, _LayerCounts] = {}

    def update(self, layer: int, expert_ids: npt.NDArray[Any]) -> None:
        """Counts tokens of one layer; nothing is counted where an error is raised.

        Args:
            layer: number of the layer in the model.
            expert_ids: `[tokens, k]` integers from 0 to E - 1, distinct within a row.

        Raises:
            InputError: an id is out of range or twice in a row, or k changes.
        """
        if len(expert_ids) == 0:
            return
        low, high = int(expert_ids.min()), int(expert_ids.max())
        if low < 0 or high >= self._num_experts:
            raise InputError(
                f"expert ids from {low} to {high} in layer {layer}, but the layer has "
                f"{self._num_experts} experts"
            )
        counts = self._layers.get(layer)
        if counts is None:
            rng = np.random.default_rng([self._seed, layer])
            top_k = expert_ids.shape[1]
            counts = _LayerCounts(self._num_experts, top_k, SetCounter(top_k, rng, self._capacity))
        if expert_ids.shape[1] != counts.top_k:
            raise InputError(
                f"{expert_ids.shape[1]} experts per token in layer {layer}, {counts.top_k} before"
            )
        pairs = _count_pairs(expert_ids, self._num_experts)
        if pairs.diagonal().any():
            raise InputError(f"an expert is twice in a token's choice in layer {layer}")
        counts.add(expert_ids, pairs)
        self._layers[layer] = counts

    @property
    def num_tokens(self) -> int:
        """Tokens counted so far, of the layer with the most."""
        return max((counts.num_tokens for counts in self._layers.values()), default=0)

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers counted so far, ascending."""
        return sorted(self._layers)

    def build(
        self, names: Mapping[int, str], provenance: Mapping[str, Any] | None = None
    ) -> CollaborationProfile:
        """The profile so far, layers in the order of their numbers.

        Args:
            names: router paths by layer number.
            provenance: JSON data.

        Raises:
            InputError: no tokens were counted.
        """
        if not self._layers:
            raise InputError("no tokens were found; record some and try again")
        layers = tuple(
            self._layers[number].build(names[number], self._is_ordered) for number in self.layers
        )
        return CollaborationProfile(layers=layers, provenance=dict(provenance or {}))


class _LayerCounts:
    def __init__(self, num_experts: int, top_k: int, sets: SetCounter) -> None:
        self.top_k = top_k
        self._pairs = np.zeros((num_experts, num_experts), dtype=np.int64)
        self._load = np.zeros(num_experts, dtype=np.int64)
        self._first = np.zeros(num_experts, dtype=np.int64)
        self._sets = sets

    @property
    def num_tokens(self) -> int:
        return self._sets.num_tokens

    def add(self, expert_ids: npt.NDArray[Any], pairs: Int) -> None:
        num_experts = len(self._load)
        self._pairs += pairs
        self._load += np.bincount(expert_ids.ravel(), minlength=num_experts)
        self._first += np.bincount(expert_ids[:, 0], minlength=num_experts)
        self._sets.add(expert_ids)

    def build(self, name: str, is_ordered: bool) -> LayerProfile:
        return LayerProfile(
            name=name,
            num_experts=len(self._load),
            top_k=self.top_k,
            num_tokens=self.num_tokens,
            coactivation=self._pairs.copy(),
            load=self._load.copy(),
            top1=self._first.copy() if is_ordered else None,
            sets=self._sets.build(),
        )


def _count_pairs(expert_ids: npt.NDArray[Any], num_experts: int) -> Int:
    """Symmetric pair counts `[E, E]` of `[tokens, k]` ids; the diagonal counts repetitions."""
    counts = np.zeros(num_experts**2, dtype=np.int64)
    for start in range(0, len(expert_ids), _CHUNK_TOKENS):
        columns = np.ascontiguousarray(expert_ids[start : start + _CHUNK_TOKENS].T, dtype=np.int64)
        for first in range(len(columns) - 1):
            keys = columns[first] * num_experts + columns[first + 1 :]
            counts += np.bincount(keys.ravel(), minlength=num_experts**2)
    square = counts.reshape(num_experts, num_experts)
    return square + square.T
