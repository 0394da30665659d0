"""The collaboration profile: counts of which experts were chosen together, per MoE layer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.artifacts import Artifact, damaged_file, read_arrays, read_header, write_artifact
from c2r.errors import ArtifactError, InputError
from c2r.profiling.checks import check_layer, check_set_ids
from c2r.profiling.sets import MAX_DISTINCT_SETS, RoutingSets
from c2r.summaries import Summarised, known
from c2r.types import Arrays, Float, Int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class LayerProfile(Summarised):
    """Counts of one MoE layer over `num_tokens` tokens.

    Attributes:
        name: module path of the router; empty where the source does not say.
        num_experts: E.
        top_k: experts per token.
        num_tokens: tokens counted, padding left out.
        coactivation: `[E, E]` int64, tokens that chose both experts; symmetric, zero diagonal.
        load: `[E]` int64, tokens that chose each expert.
        top1: `[E]` int64, tokens whose top-1 is each expert; None where the source has no order.
        score_mass: `[E, E]` float64, sum of the score mass of expert j over the tokens whose top-1
            is i; None where the source has no scores.
        sets: the routing sets; None where the source holds pairs only.
    """

    name: str
    num_experts: int
    top_k: int
    num_tokens: int
    coactivation: Int
    load: Int
    top1: Int | None = None
    score_mass: Float | None = None
    sets: RoutingSets | None = None

    def merge(self, other: "LayerProfile", rng: np.random.Generator) -> "LayerProfile":
        """The profile of both layers' tokens."""
        sets = None
        if self.sets is not None and other.sets is not None:
            sets = self.sets.merge(other.sets, rng)
        return replace(
            self,
            num_tokens=self.num_tokens + other.num_tokens,
            coactivation=self.coactivation + other.coactivation,
            load=self.load + other.load,
            top1=_sum_known(self.top1, other.top1),
            score_mass=_sum_known(self.score_mass, other.score_mass),
            sets=sets,
        )

    def summary(self) -> tuple[str, Mapping[str, str]]:
        """See `Summarised`."""
        shape = f"{self.num_experts} experts, k = {self.top_k}, {self.num_tokens:,} tokens"
        return f"LayerProfile {self.name or '(no name)'}: {shape}", {}

    def routing_sets(self) -> tuple[Int, Int] | None:
        """Distinct routing sets `[sets, k]` and their counts `[sets]`; None where unknown.

        At k = 2 the pair counts are the sets; at k = 1 the loads are.
        """
        if self.sets is not None:
            return self.sets.distinct()
        if self.top_k == 2:
            first, second = np.nonzero(np.triu(self.coactivation, 1))
            return np.stack([first, second], axis=1), self.coactivation[first, second]
        if self.top_k == 1:
            used = np.flatnonzero(self.load)
            return used[:, None], self.load[used]
        return None


_PAIR = 2  # experts, whose counts tell their sets


def _sum_known(ours: npt.NDArray[Any] | None, theirs: npt.NDArray[Any] | None) -> Any:
    return None if ours is None or theirs is None else ours + theirs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class CollaborationProfile(Summarised):
    """Layer profiles in the model's order, and where they come from.

    `provenance` is JSON data: the model and its fingerprint, the text, the seed, whether the
    profile is complete.
    """

    layers: tuple[LayerProfile, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> "Model":
        """What tells the model that was profiled, for `check_same_model`."""
        return [(layer.num_experts, layer.top_k) for layer in self.layers], self.provenance

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self.layers)

    @property
    def num_experts(self) -> int:
        """Experts of the largest layer."""
        return max(layer.num_experts for layer in self.layers)

    @property
    def top_k(self) -> int:
        """Experts per token, of the layer with the most."""
        return max(layer.top_k for layer in self.layers)

    @property
    def num_tokens(self) -> int:
        """Tokens counted, padding left out."""
        return max(layer.num_tokens for layer in self.layers)

    def summary(self) -> tuple[str, Mapping[str, str]]:
        """See `Summarised`."""
        loads = [layer.load.max() / layer.load.mean() for layer in self.layers if layer.load.any()]
        if not loads:
            return "CollaborationProfile", {"tokens": "none"}
        is_whole = self.provenance.get("complete", True)
        has_sets = all(layer.sets is not None or layer.top_k <= _PAIR for layer in self.layers)
        figures = {
            "layers": f"{self.num_layers} of {self.num_experts} experts, k = {self.top_k}",
            "tokens": f"{self.num_tokens:,}",
            "busiest expert": f"{np.mean(loads):.2f} of the mean load",
            "routing sets": "" if has_sets else "not known, pairs only",
            "complete": "" if is_whole else "no: still being counted, or interrupted",
        }
        return "CollaborationProfile", known(figures)

    def merge(self, other: "CollaborationProfile", seed: int = 0) -> "CollaborationProfile":
        """The profile of both texts; provenance is this profile's, complete if both are.

        Raises:
            InputError: the profiles are of models with different layers.
        """
        check_same_model(self.model, other.model, "profiles")
        rng = np.random.default_rng([seed, self.num_tokens, other.num_tokens])
        layers = tuple(a.merge(b, rng) for a, b in zip(self.layers, other.layers, strict=True))
        complete = self.provenance.get("complete", True) and other.provenance.get("complete", True)
        return CollaborationProfile(
            layers=layers, provenance={**self.provenance, "complete": complete}
        )

    def save(self, path: str | Path) -> None:
        """Writes the profile atomically. Raises `InputError` if it cannot be written."""
        write_artifact(path, self.to_artifact())

    def to_artifact(self) -> Artifact:
        """The profile as arrays and a JSON header."""
        arrays: Arrays = {}
        layers = []
        for index, layer in enumerate(self.layers):
            arrays.update(_layer_arrays(index, layer))
            entry = {
                "name": layer.name,
                "num_experts": layer.num_experts,
                "top_k": layer.top_k,
                "num_tokens": layer.num_tokens,
            }
            if layer.sets is not None:
                entry["sets_num_tokens"] = layer.sets.num_tokens
                entry["sets_capacity"] = layer.sets.capacity
                entry["sets_exact"] = layer.sets.is_exact
            layers.append(entry)
        header = {"layers": layers, "provenance": dict(self.provenance)}
        return Artifact(kind="profile", header=header, arrays=arrays)

    @classmethod
    def load(cls, path: str | Path) -> "CollaborationProfile":
        """Reads a profile, layer by layer: of the file no more is in memory than one.

        Raises `ArtifactError` if the file is damaged or of another kind.
        """
        header = read_header(path, "profile")
        return cls._of(header, lambda index: read_arrays(path, f"layers.{index}."), path)

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, source: str | Path = "the data"
    ) -> "CollaborationProfile":
        """The profile in an artifact; `source` names it in errors. Raises `ArtifactError`."""
        return cls._of(artifact.header, lambda _: artifact.arrays, source)

    @classmethod
    def _of(
        cls, header: Mapping[str, Any], arrays_of: Callable[[int], Arrays], source: str | Path
    ) -> "CollaborationProfile":
        with damaged_file(source):
            if not isinstance(header["provenance"], dict):
                raise ValueError("provenance")
            layers = []
            for index, entry in enumerate(header["layers"]):
                layers.append(read_layer(index, entry, arrays_of(index)))
                check_layer(layers[-1])
            profile = cls(layers=tuple(layers), provenance=header["provenance"])
        if not profile.layers:
            raise ArtifactError(f"{source} is a profile without layers; profile the model again")
        return profile


Model = tuple[list[tuple[int, int]], Mapping[str, Any]]
"""E and k of each layer, and the provenance, which may name the model."""


def check_same_model(one: Model, other: Model, what: str) -> None:
    """Raises `InputError` unless two profiles, named by `what`, are of the same model."""
    (ours, first), (theirs, second) = one, other
    if ours != theirs:
        raise InputError(
            f"cannot merge {what} of different models: {_describe(ours)} against "
            f"{_describe(theirs)}; merge profiles of the same model"
        )
    known, found = (origin.get("model_fingerprint") for origin in (first, second))
    if known != found:
        raise InputError(
            f"cannot merge {what}: their model fingerprints differ, {json.dumps(known)} against "
            f"{json.dumps(found)}; merge profiles of one model and the same weights"
        )


def _describe(shapes: list[tuple[int, int]]) -> str:
    experts = sorted({num_experts for num_experts, _ in shapes})
    return f"{len(shapes)} layers of {'/'.join(map(str, experts))} experts"


def _layer_arrays(index: int, layer: LayerProfile) -> Arrays:
    arrays: Arrays = {"coactivation": layer.coactivation, "load": layer.load}
    if layer.top1 is not None:
        arrays["top1"] = layer.top1
    if layer.score_mass is not None:
        arrays["score_mass"] = layer.score_mass
    if layer.sets is not None:
        arrays["sets"] = layer.sets.experts.astype(np.int32)
        arrays["set_counts"] = layer.sets.counts
        if layer.sets.priorities is not None:
            arrays["set_priorities"] = layer.sets.priorities
    return {f"layers.{index}.{name}": array for name, array in arrays.items()}


def read_layer(
    index: int, entry: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> LayerProfile:
    """A layer from its entry in a profile's header, and the arrays of the file; not yet checked.

    Raises what a missing or malformed field raises.
    """

    def optional(name: str) -> Any:
        return arrays.get(f"layers.{index}.{name}")

    num_experts, top_k = int(entry["num_experts"]), int(entry["top_k"])
    coactivation = arrays[f"layers.{index}.coactivation"]
    if coactivation.shape != (num_experts, num_experts):
        raise ValueError(f"coactivation of layer {index} has shape {coactivation.shape}")
    experts = optional("sets")
    sets = None
    if experts is not None:
        check_set_ids(experts, num_experts)
        sets = RoutingSets(
            experts=experts.astype(np.int64),
            counts=arrays[f"layers.{index}.set_counts"],
            num_tokens=int(entry["sets_num_tokens"]),
            priorities=optional("set_priorities"),
            capacity=int(entry.get("sets_capacity", MAX_DISTINCT_SETS)),
        )
    return LayerProfile(
        name=str(entry["name"]),
        num_experts=num_experts,
        top_k=top_k,
        num_tokens=int(entry["num_tokens"]),
        coactivation=coactivation,
        load=arrays[f"layers.{index}.load"],
        top1=optional("top1"),
        score_mass=optional("score_mass"),
        sets=sets,
    )
