"""Accumulates a collaboration profile from a stream of traces, in constant memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from c2r.ops.coactivation import count_pairs
from c2r.profiling.profile import CollaborationProfile, LayerProfile
from c2r.profiling.sets import MAX_DISTINCT_SETS, SetCounter
from c2r.traces.trace import LayerTrace, RoutingTrace, score_mass, used_places


class ProfileBuilder:
    """Takes routing traces of one model and builds the profile of all of them.

    Starts from `profile` if one is given, so that an interrupted run resumes. At most
    `capacity` distinct routing sets a layer are kept exactly; `seed` draws the sample beyond.
    """

    def __init__(
        self,
        profile: CollaborationProfile | None = None,
        *,
        seed: int = 0,
        capacity: int = MAX_DISTINCT_SETS,
    ) -> None:
        self._seed = seed
        self._capacity = capacity
        self._layers: list[_LayerBuilder] | None = None
        self._start = profile

    def update(self, trace: RoutingTrace) -> None:
        """Counts the tokens of `trace`."""
        if self._layers is None:
            self._layers = [
                _LayerBuilder(layer, np.random.default_rng([self._seed, index]), self._capacity)
                for index, layer in enumerate(trace.layers)
            ]
        for builder, layer in zip(self._layers, trace.layers, strict=True):
            builder.update(layer)

    @property
    def num_tokens(self) -> int:
        """Tokens counted so far, with the tokens of the profile that it started from."""
        started = self._start.num_tokens if self._start else 0
        return started + (max(b.num_tokens for b in self._layers) if self._layers else 0)

    def build(self, provenance: Mapping[str, Any] | None = None) -> CollaborationProfile | None:
        """The profile so far; None before the first trace, unless it started from one."""
        provenance = dict(provenance or {})
        if self._layers is None:
            if self._start is None:
                return None
            return CollaborationProfile(layers=self._start.layers, provenance=provenance)
        profile = CollaborationProfile(
            layers=tuple(builder.build() for builder in self._layers), provenance=provenance
        )
        if self._start is None:
            return profile
        start = CollaborationProfile(layers=self._start.layers, provenance=provenance)
        return start.merge(profile, self._seed)


class _LayerBuilder:
    def __init__(self, trace: LayerTrace, rng: np.random.Generator, capacity: int) -> None:
        self._name = trace.name
        self._num_experts = trace.scores.shape[-1]
        self._top_k = trace.expert_ids.shape[1]
        square = (self._num_experts, self._num_experts)
        self._coactivation = torch.zeros(square, dtype=torch.int64)
        self._load = torch.zeros(self._num_experts, dtype=torch.int64)
        self._top1 = torch.zeros(self._num_experts, dtype=torch.int64)
        self._score_mass = torch.zeros(square, dtype=torch.float64)
        self._sets = SetCounter(self._top_k, rng, capacity)

    @property
    def num_tokens(self) -> int:
        return self._sets.num_tokens

    def update(self, trace: LayerTrace) -> None:
        ids = trace.expert_ids
        num_experts = self._num_experts
        mass = score_mass(trace.scores, trace.score_kind)
        mass_by_top1 = mass.new_zeros(num_experts, num_experts).index_add_(0, ids[:, 0], mass)
        slots = used_places(ids)
        kept = None if slots.all() else slots
        used = ids.flatten() if kept is None else ids[kept]
        self._coactivation += count_pairs(ids, num_experts, kept).cpu()
        self._load += torch.bincount(used, minlength=num_experts).cpu()
        self._top1 += torch.bincount(ids[:, 0], minlength=num_experts).cpu()
        self._score_mass += mass_by_top1.cpu()
        self._sets.add(ids.cpu().numpy())

    def build(self) -> LayerProfile:
        return LayerProfile(
            name=self._name,
            num_experts=self._num_experts,
            top_k=self._top_k,
            num_tokens=self.num_tokens,
            coactivation=self._coactivation.numpy().copy(),
            load=self._load.numpy().copy(),
            top1=self._top1.numpy().copy(),
            score_mass=self._score_mass.numpy().copy(),
            sets=self._sets.build(),
        )
