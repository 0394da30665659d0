"""Routing recorded from a model on text, to be replayed when a layer is timed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2r.adapters.huggingface import apply, profile, remove
from c2r.artifacts import (
    Artifact,
    damaged_file,
    decode_artifact,
    encode_artifact,
    read_artifact,
    write_artifact,
)
from c2r.errors import InputError
from c2r.measuring import observing
from c2r.parallel import gather_bytes
from c2r.planning import parse_policy
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.text import Text, token_batches
from c2r.timing.placing import Placing, place
from c2r.traces import LayerTrace
from c2r.types import Float32, Int

Batch = dict[str, Tensor]

UNCONSTRAINED = "top_k"
_WINDOW = 512  # tokens
_TOKENS_READ = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecordedRouting:
    """What the MoE layers of a model decided on one text under one policy.

    Attributes:
        loss: nats per token of that text; None where nobody knows the text.
        expert_ids: `[layers, tokens, k]` int64.
        weights: `[layers, tokens, k]` float32, the factors of the experts' outputs; 1 / k where
            the model does not show them.
    """

    loss: float | None
    expert_ids: Int
    weights: Float32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recording:
    """Routing of one text under several policies, and a planned placement.

    Attributes:
        num_experts: E of every layer.
        topology: the ranks that the placement is for.
        placement: `[layers, E]` int64, planned from the unconstrained routing of another text. The
            policies chose for it.
        replicas: `[layers, ranks, r]` int64, further experts of each rank; r = 0 for none.
        max_load: bound on the busiest rank's load that it keeps on that text.
        routings: by name; `"top_k"` is the model's own routing.
    """

    num_experts: int
    topology: ClusterTopology
    placement: Int
    replicas: Int
    max_load: float
    routings: Mapping[str, RecordedRouting]

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self.placement)

    @property
    def num_replicas(self) -> int:
        """r, further experts of each rank."""
        return int(self.replicas.shape[2])

    @classmethod
    def of_plan(
        cls, plan: Plan, max_load: float, routings: Mapping[str, RecordedRouting]
    ) -> "Recording":
        """The recording of routings of layers that are placed as `place` says."""
        num_ranks = plan.topology.num_ranks
        return cls(
            num_experts=plan.layers[0].num_experts,
            topology=plan.topology,
            placement=np.stack([layer.placement for layer in plan.layers]),
            replicas=np.stack([layer.replicas.reshape(num_ranks, -1) for layer in plan.layers]),
            max_load=max_load,
            routings=routings,
        )

    def of_layers(self, num_layers: int | None) -> "Recording":
        """As many of the layers, spread evenly; all where None."""
        kept = spread(self.num_layers, num_layers)
        routings = {
            name: replace(
                routing, expert_ids=routing.expert_ids[kept], weights=routing.weights[kept]
            )
            for name, routing in self.routings.items()
        }
        return replace(
            self,
            placement=self.placement[kept],
            replicas=self.replicas[kept],
            routings=routings,
        )

    def encode(self) -> bytes:
        """The content of the file that holds the recording."""
        return encode_artifact(self._artifact())

    @classmethod
    def decode(cls, content: bytes) -> "Recording":
        """The recording that `encode` encoded."""
        return cls._from_artifact(decode_artifact(content, "recording"), "the data")

    def save(self, path: str | Path) -> None:
        """Writes the recording atomically. Raises `InputError` if it cannot be written."""
        write_artifact(path, self._artifact())

    @classmethod
    def load(cls, path: str | Path) -> "Recording":
        """Reads a recording. Raises `ArtifactError` if the file is damaged or of another kind."""
        return cls._from_artifact(read_artifact(path, "recording"), path)

    def _artifact(self) -> Artifact:
        header = {
            "num_experts": self.num_experts,
            "num_ranks": self.topology.num_ranks,
            "num_nodes": self.topology.num_nodes,
            "max_load": self.max_load,
            "losses": {name: routing.loss for name, routing in self.routings.items()},
        }
        arrays: dict[str, npt.NDArray[Any]] = {"placement": self.placement.astype(np.int16)}
        if self.num_replicas:
            arrays["replicas"] = self.replicas.astype(np.int16)
        for name, routing in self.routings.items():
            arrays[f"{name}.expert_ids"] = routing.expert_ids.astype(np.int16)
            arrays[f"{name}.weights"] = routing.weights
        return Artifact(kind="recording", header=header, arrays=arrays)

    @classmethod
    def _from_artifact(cls, artifact: Artifact, source: str | Path) -> "Recording":
        header, arrays = artifact.header, artifact.arrays
        with damaged_file(source):
            topology = ClusterTopology(
                num_ranks=int(header["num_ranks"]), num_nodes=int(header["num_nodes"])
            )
            placement = arrays["placement"].astype(np.int64)
            none = np.empty((len(placement), topology.num_ranks, 0))
            recording = cls(
                num_experts=int(header["num_experts"]),
                topology=topology,
                placement=placement,
                replicas=arrays.get("replicas", none).astype(np.int64),
                max_load=float(header["max_load"]),
                routings={
                    name: RecordedRouting(
                        loss=None if loss is None else float(loss),
                        expert_ids=arrays[f"{name}.expert_ids"].astype(np.int64),
                        weights=arrays[f"{name}.weights"],
                    )
                    for name, loss in header["losses"].items()
                },
            )
            recording.check()
            return recording

    def check(self) -> None:
        """Raises `ValueError` unless shapes and ranges are those of a recording."""
        layers, num_experts = self.num_layers, self.num_experts
        _require(self.placement.shape == (layers, num_experts), "placement")
        _require(_is_below(self.placement, self.topology.num_ranks), "placement")
        replicas = self.replicas
        _require(replicas.ndim == 3, "replicas")
        _require(replicas.shape[:2] == (layers, self.topology.num_ranks), "replicas")
        _require(_is_below(replicas, num_experts), "replicas")
        _require(UNCONSTRAINED in self.routings, UNCONSTRAINED)
        for name, routing in self.routings.items():
            ids, weights = routing.expert_ids, routing.weights
            _require(ids.ndim == 3 and len(ids) == layers, f"{name}.expert_ids")
            _require(_is_below(ids, num_experts), f"{name}.expert_ids")
            fits = weights.shape == ids.shape and weights.dtype == np.float32
            _require(fits and bool(np.isfinite(weights).all()), f"{name}.weights")
        _require(math.isfinite(self.max_load), "max_load")


def _is_below(numbers: Int, end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(name)


def spread(total: int, wanted: int | None) -> Int:
    """`wanted` of the numbers below `total`, ascending and evenly spread; all where None.

    Raises `InputError` where there are fewer.
    """
    if wanted is None:
        return np.arange(total)
    if not 1 <= wanted <= total:
        raise InputError(f"{wanted} layers or tokens of {total} are asked for; give 1 to {total}")
    return np.arange(wanted) * total // wanted


def spread_windows(texts: Sequence[Text], tokenizer: Any, num_tokens: int) -> list[Batch]:
    """Batches of one window each from all parts of the texts, of so many tokens together."""
    read = max(_TOKENS_READ, num_tokens)
    windows = list(token_batches(texts, tokenizer, seq_len=_WINDOW, batch_size=1, num_tokens=read))
    wanted = min(-(-num_tokens // _WINDOW), len(windows))
    return [windows[index] for index in spread(len(windows), wanted)]


def share_recording(recording: Recording | None) -> Recording:
    """What the first rank gives, on all ranks of the default group; the others may give None."""
    return Recording.decode(gather_bytes(b"" if recording is None else recording.encode())[0])


def name_policies(texts: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Policies and strengths by name: `budgeted=0.05,0.1` gives `budgeted 0.05`, `budgeted 0.1`.

    Raises:
        InputError, PlanError: a policy without strength, or as `parse_policy`.
    """
    policies: dict[str, tuple[str, float]] = {}
    for text in texts:
        policy, strengths = parse_policy(text)
        if not strengths:
            raise InputError(f"{text} has no strength to record; write it as budgeted=0.1 or c2r=8")
        policies |= {f"{policy} {strength:g}": (policy, strength) for strength in strengths}
    return policies


def record_routings(
    model: Any,
    calibration: Iterable[Batch],
    evaluation: Callable[[], Iterable[Batch]],
    policies: Mapping[str, tuple[str, float]],
    placing: Placing,
    num_tokens: int | None = None,
) -> Recording:
    """Plans from one text, then records the routing of another, free and under each policy.

    Args:
        model: a causal language model of transformers; left as it was.
        calibration: batches to profile, as `c2r.profile` takes them.
        evaluation: gives the batches to record, anew at each call.
        policies: by name, the policy and its strength, as `name_policies` gives them.
        placing: where and how the experts are placed.
        num_tokens: tokens to keep, drawn evenly from the recorded ones, whose losses all count.

    Raises:
        InputError: too little text, layers of unlike shape, or a name or strength that cannot be
            used.
        ModelError, PlanError, RoutingError: as `profile`, `place` and `capture`.
    """
    found = profile(model, calibration)
    shapes = {(layer.num_experts, layer.top_k) for layer in found.layers}
    if len(shapes) != 1:
        raise InputError(
            f"the layers have unlike experts and k, {sorted(shapes)}; only equal ones are timed"
        )
    plan, max_load = place(found, placing)
    routings = {UNCONSTRAINED: _record(model, evaluation(), num_tokens)}
    for name, (policy, strength) in policies.items():
        apply(model, _constrained(plan, policy, strength))
        try:
            routings[name] = _record(model, evaluation(), num_tokens)
        finally:
            remove(model)
    return Recording.of_plan(plan, max_load, routings)


def _constrained(plan: Plan, policy: str, strength: float) -> Plan:
    """`plan`, which lists all partners, under a policy."""

    def constrain(layer: LayerPlan) -> LayerPlan:
        length = int(strength) if policy == "c2r" else 0
        partners = layer.partners[:, :length]
        return replace(layer, policy=policy, strength=strength, partners=partners)

    return replace(plan, layers=tuple(constrain(layer) for layer in plan.layers))


def _record(model: Any, batches: Iterable[Batch], num_tokens: int | None) -> RecordedRouting:
    losses, ids, weights = [], [], []
    with observing(model) as observe:
        for batch in batches:
            found, trace = observe(batch)
            losses.append(found.losses)
            ids.append(torch.stack([layer.expert_ids for layer in trace.layers]))
            weights.append(torch.stack([_weights(layer) for layer in trace.layers]))
    if not losses:
        raise InputError("the text holds no token to record; give more text")
    expert_ids, factors = (torch.cat(parts, dim=1).cpu() for parts in (ids, weights))
    kept = spread(expert_ids.shape[1], num_tokens)
    return RecordedRouting(
        loss=torch.cat(losses).double().mean().item(),
        expert_ids=expert_ids.numpy()[:, kept],
        weights=factors.float().numpy()[:, kept],
    )


def _weights(layer: LayerTrace) -> Tensor:
    if layer.weights is not None:
        return layer.weights
    return torch.full_like(layer.expert_ids, 1 / layer.expert_ids.shape[1], dtype=torch.float32)
