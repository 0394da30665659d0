"""The plan: per MoE layer, how routing is constrained and which rank holds which expert."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from c2r.artifacts import Artifact, damaged_file, read_artifact, write_artifact
from c2r.errors import ArtifactError, one_line
from c2r.plans.checks import check_plan
from c2r.plans.holders import NO_EXPERTS, assign_ranks, experts_of, holders_of
from c2r.plans.topology import ClusterTopology
from c2r.summaries import Summarised, figure, known
from c2r.types import Arrays, Int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class LayerPlan(Summarised):
    """The plan of one MoE layer; plain top-k without replicas where no more is said.

    Attributes:
        name: module path of the router; empty where the profile does not say.
        num_experts: E.
        top_k: experts per token.
        policy: name of the routing policy, `"c2r"` for the published rule.
        strength: the policy's one number; for `"c2r"` the list length T.
        partners: `[E, T]` int64, row i the closest collaborators of expert i, closest first;
            T = 0, with or without rows, where the policy uses no lists.
        placement: `[E]` int64, the rank that holds each expert.
        replicas: `[ranks, r]` int64, further experts that each rank holds a copy of, none of them
            its own and none twice; empty where every expert lives on one rank only. Which of its
            ranks computes an expert for a token, `ranks_of` tells.
    """

    name: str = ""
    num_experts: int
    top_k: int
    policy: str = "top_k"
    strength: float = 0.0
    partners: Int = field(default_factory=lambda: NO_EXPERTS)
    placement: Int
    replicas: Int = field(default_factory=lambda: NO_EXPERTS)

    def experts_of(self, rank: int) -> Int:
        """The experts on `rank` in the order of their slots; see `plans.holders.experts_of`."""
        return experts_of(self.placement, self.replicas, rank)

    def ranks_of(self, expert_ids: Int, topology: ClusterTopology) -> Int:
        """The rank that computes each of a token's experts, `[tokens, k]`; see `assign_ranks`."""
        if not self.replicas.size:
            return self.placement[expert_ids]
        holders = holders_of(self.placement, self.replicas, topology.num_ranks)
        return assign_ranks(expert_ids, holders, topology.ranks_per_node)

    def summary(self) -> tuple[str, Mapping[str, str]]:
        """See `Summarised`."""
        shape = f"{self.num_experts} experts, k = {self.top_k}, {self.policy} {self.strength:g}"
        return f"LayerPlan {self.name or '(no name)'}: {shape}", {}

    @property
    def top_t(self) -> int:
        """Length T of the partner lists."""
        return int(self.partners.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Plan(Summarised):
    """Layer plans in the model's order, the devices, and where the plan comes from.

    `provenance` is JSON data: the fingerprint of the model that was profiled (absent where the
    profile does not say), the tokens and texts of the profile, the seed, the objective, and the
    figures that the profile predicts.
    """

    layers: tuple[LayerPlan, ...]
    topology: ClusterTopology
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self.layers)

    @property
    def is_constrained(self) -> bool:
        """Whether the plan changes which experts tokens go to."""
        return any(layer.policy != "top_k" for layer in self.layers)

    @property
    def num_replicas(self) -> int:
        """Replicas that a rank holds, of the layer with most."""
        return max((layer.replicas.shape[-1] for layer in self.layers), default=0)

    @property
    def fingerprint(self) -> str:
        """A digest of what the plan does: lists, placements and devices, not provenance."""
        digest = hashlib.sha256()
        digest.update(f"{self.topology.num_ranks}/{self.topology.num_nodes}".encode())
        for layer in self.layers:
            strength = float(layer.strength)
            header = [layer.name, layer.num_experts, layer.top_k, layer.policy, strength]
            digest.update(json.dumps(header).encode())
            digest.update(layer.partners.astype("<i8").tobytes())
            digest.update(layer.placement.astype("<i8").tobytes())
            digest.update(layer.replicas.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> tuple[str, Mapping[str, str]]:
        """See `Summarised`."""
        shapes = sorted({(layer.num_experts, layer.top_k) for layer in self.layers})
        policies = sorted({f"{layer.policy} {layer.strength:g}" for layer in self.layers})
        predicted = self.provenance.get("predicted")
        found = predicted if isinstance(predicted, Mapping) else {}
        nodes = self.topology.num_nodes
        ranks = f"{self.topology.num_ranks} on {nodes} node{'s' * (nodes > 1)}"
        experts = " and ".join(f"{experts} experts, k = {k}" for experts, k in shapes)
        figures = {
            "layers": f"{self.num_layers} of {experts}",
            "ranks": ranks,
            "policy": policies[0] if len(policies) == 1 else f"{len(policies)} settings",
            "replicas": f"{self.num_replicas} a rank" if self.num_replicas else "",
            "cluster": one_line(self.provenance.get("cluster") or ""),
            "copies, placed": figure(found.get("copies"), ".2f"),
            "load, placed": figure(found.get("rank_load_max_over_mean"), ".2f"),
        }
        return f"Plan {self.fingerprint}", known(figures)

    def folded(self, num_ranks: int) -> "Plan":
        """The same experts on fewer ranks, of which each takes those of neighbours; no replicas.

        It only says where experts are: the policy, which may depend on the ranks, is left out. The
        plan itself where it has no more ranks than that.
        """
        if num_ranks >= self.topology.num_ranks:
            return self
        layers = tuple(
            replace(
                layer,
                policy="top_k",
                strength=0.0,
                partners=NO_EXPERTS,
                placement=layer.placement * num_ranks // self.topology.num_ranks,
                replicas=NO_EXPERTS,
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, topology=ClusterTopology(num_ranks=num_ranks))

    def save(self, path: str | Path) -> None:
        """Writes the plan atomically. Raises `InputError` if it cannot be written."""
        write_artifact(path, self.to_artifact())

    def to_artifact(self) -> Artifact:
        """The plan as arrays and a JSON header."""
        header = {
            "num_ranks": self.topology.num_ranks,
            "num_nodes": self.topology.num_nodes,
            "layers": [
                {
                    "name": layer.name,
                    "num_experts": layer.num_experts,
                    "top_k": layer.top_k,
                    "policy": layer.policy,
                    "strength": layer.strength,
                }
                for layer in self.layers
            ],
            "provenance": dict(self.provenance),
            "fingerprint": self.fingerprint,
        }
        arrays = {}
        for index, layer in enumerate(self.layers):
            arrays[f"layers.{index}.partners"] = layer.partners.astype(np.int16)
            arrays[f"layers.{index}.placement"] = layer.placement.astype(np.int16)
            if layer.replicas.size:
                arrays[f"layers.{index}.replicas"] = layer.replicas.astype(np.int16)
        return Artifact(kind="plan", header=header, arrays=arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads a plan. Raises `ArtifactError` if the file is damaged or of another kind."""
        return cls.from_artifact(read_artifact(path, "plan"), path)

    @classmethod
    def from_artifact(cls, artifact: Artifact, source: str | Path = "the data") -> "Plan":
        """The plan in an artifact; `source` names it in errors. Raises `ArtifactError`."""
        with damaged_file(source):
            plan = cls(
                layers=tuple(
                    _read_layer(index, entry, artifact.arrays)
                    for index, entry in enumerate(artifact.header["layers"])
                ),
                topology=ClusterTopology(
                    num_ranks=int(artifact.header["num_ranks"]),
                    num_nodes=int(artifact.header["num_nodes"]),
                ),
                provenance=artifact.header["provenance"],
            )
            check_plan(plan)
        if plan.fingerprint != artifact.header.get("fingerprint"):
            raise ArtifactError(f"{source} was changed after it was written; make the plan again")
        return plan


def _read_layer(index: int, entry: Mapping[str, Any], arrays: Arrays) -> LayerPlan:
    return LayerPlan(
        name=str(entry["name"]),
        num_experts=int(entry["num_experts"]),
        top_k=int(entry["top_k"]),
        policy=str(entry["policy"]),
        strength=float(entry["strength"]),
        partners=arrays[f"layers.{index}.partners"].astype(np.int64),
        placement=arrays[f"layers.{index}.placement"].astype(np.int64),
        replicas=arrays.get(f"layers.{index}.replicas", NO_EXPERTS).astype(np.int64),
    )
