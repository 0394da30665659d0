"""What one plan costs and sends, measured on a text."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from c2r.artifacts import damaged_file, read_json, write_text
from c2r.summaries import Summarised, known

Strength = float | tuple[float, ...]
"""Of a policy: one number for all layers, or one for each."""

ByLayer = tuple[tuple[float, ...], ...]
"""Figures of each layer, of each of its ranks or nodes."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Measurement(Summarised):
    """What a model under a plan costs in quality and sends, on a text.

    `kl`, `top1_agreement`, `loss_increase` and its interval are against plain top-k on the same
    placement; of plain top-k itself they are 0 and 1.

    Attributes:
        policy: of the plan; where layers have different ones, their names joined by `+`.
        strength: of the policy, one number for all layers or one for each.
        loss: nats per predicted token.
        perplexity: exp(loss).
        kl: of plain top-k's next-token distribution to this one, nats per predicted token.
        top1_agreement: share of predicted tokens whose likeliest next token is plain top-k's.
        copies: distinct ranks that a token visits, mean over tokens and layers, its own counted.
        copies_in_order: the same, were the experts placed in the order of their ids.
        remote_copies: `copies` but for the token's own rank, on any rank with equal chance.
        node_copies: distinct nodes that a token visits, its own counted.
        rank_load_max_over_mean: expert rows of the busiest rank over the mean; mean over layers.
        active_experts_per_rank: distinct experts that a batch uses on a rank, mean over batches,
            ranks and layers.
        num_tokens: predicted tokens.
        loss_increase: loss over that of plain top-k minus 1: 0.003 is 0.3 % more.
        loss_increase_interval: 95 % interval of it, from paired differences between windows.
        plan_fingerprint: of the plan.
        num_ranks: devices that the plan is for.
        rank_rows: by layer, expert rows per token of each rank; empty in files of earlier versions.
        rank_visits: by layer, the share of the tokens that visit each rank.
        node_visits: by layer, the share that visits each node.
        layer_time: predicted milliseconds of an MoE layer with what came to each rank, mean over
            layers, on the cluster that was asked for; None where none was.
        step_time: the same of a step of the model.
        reference: plain top-k on the same placement and text; None of plain top-k itself, and in a
            sweep, whose `baseline` it is.
    """

    policy: str
    strength: Strength
    loss: float
    perplexity: float
    kl: float
    top1_agreement: float
    copies: float
    copies_in_order: float
    remote_copies: float
    node_copies: float
    rank_load_max_over_mean: float
    active_experts_per_rank: float
    num_tokens: int
    loss_increase: float
    loss_increase_interval: tuple[float, float]
    plan_fingerprint: str
    num_ranks: int
    rank_rows: ByLayer = ()
    rank_visits: ByLayer = ()
    node_visits: ByLayer = ()
    layer_time: float | None = None
    step_time: float | None = None
    reference: "Measurement | None" = None

    @property
    def busiest_visits(self) -> float:
        """Rows that arrive at the busiest rank, over those of the mean rank times copies.

        The share of tokens that visit the busiest rank times the ranks: equal to the copies where
        all ranks are visited alike. Mean over layers; 0 where it was not measured.
        """
        if not self.rank_visits:
            return 0.0
        return sum(max(layer) * len(layer) for layer in self.rank_visits) / len(self.rank_visits)

    @property
    def setting(self) -> str:
        """The policy and its strength, as `priced 0.1`."""
        if isinstance(self.strength, tuple):
            return f"{self.policy}, a strength for each layer"
        return self.policy if self.policy == "top_k" else f"{self.policy} {self.strength:g}"

    def summary(self) -> tuple[str, Mapping[str, str]]:
        """See `Summarised`."""
        low, high = (100 * end for end in self.loss_increase_interval)
        times = (("layer", self.layer_time), ("step", self.step_time))
        figures = {
            "loss": f"{self.loss:.4f} nats per token, {self.num_tokens:,} tokens",
            "loss increase": f"{100 * self.loss_increase:+.2f} % (95 %: {low:+.2f} to {high:+.2f})",
            "copies": f"{self.copies:.2f} (experts in order: {self.copies_in_order:.2f})",
            "load": f"{self.rank_load_max_over_mean:.2f}, busiest rank over the mean",
            "predicted": ", ".join(f"{t:.3f} ms a {name}" for name, t in times if t is not None),
        }
        title = f"Measurement of {self.setting} on {self.num_ranks} ranks"
        return f"{title}, plan {self.plan_fingerprint}", known(figures)

    def to_json(self) -> dict[str, Any]:
        """JSON data by the names of the attributes, without those that there are not."""
        document = asdict(self)
        document["strength"] = strength_to_json(self.strength)
        document["loss_increase_interval"] = list(self.loss_increase_interval)
        del document["reference"]
        for name in ("rank_rows", "rank_visits", "node_visits"):
            if not document[name]:
                del document[name]
        for name in _TIMES:
            if document[name] is None:
                del document[name]
        if self.reference is not None:
            document["reference"] = self.reference.to_json()
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Measurement":
        """The measurement that `to_json` gave; entries that are no attribute are passed over.

        Raises:
            KeyError, TypeError, ValueError: an attribute is missing or is not what it must be.
        """
        document = renamed(document)
        low, high = document["loss_increase_interval"]
        reference = document.get("reference")
        return cls(
            policy=str(document["policy"]),
            strength=strength_from_json(document["strength"]),
            num_tokens=int(_number(document, "num_tokens")),
            num_ranks=int(_number(document, "num_ranks")),
            plan_fingerprint=str(document["plan_fingerprint"]),
            loss_increase_interval=(float(low), float(high)),
            reference=None if reference is None else cls.from_json(reference),
            rank_rows=_by_layer(document.get("rank_rows", ())),
            rank_visits=_by_layer(document.get("rank_visits", ())),
            node_visits=_by_layer(document.get("node_visits", ())),
            **{name: _number(document, name) for name in _TIMES if name in document},
            **{name: _number(document, name) for name in _FIGURES},
        )

    def save(self, path: str | Path) -> None:
        """Writes a JSON file atomically. Raises `InputError` if it cannot be written."""
        write_text(Path(path), json.dumps(self.to_json(), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Measurement":
        """Reads a JSON file. Raises `ArtifactError` if it cannot be read, or is damaged."""
        document = read_json(path)
        with damaged_file(path):
            return cls.from_json(document)


_TIMES = ("layer_time", "step_time")
_FIGURES = tuple(name for name, kind in Measurement.__annotations__.items() if kind is float)


_EARLIER_NAMES = {"copies_contiguous": "copies_in_order"}


def renamed(document: Mapping[str, Any]) -> dict[str, Any]:
    """JSON data in which figures that earlier versions called otherwise have their names of now."""
    return {_EARLIER_NAMES.get(name, name): value for name, value in dict(document).items()}


def strength_to_json(strength: Strength) -> float | list[float]:
    """JSON data of a strength."""
    return list(strength) if isinstance(strength, tuple) else strength


def strength_from_json(value: Any) -> Strength:
    """The strength in JSON data. Raises `TypeError` or `ValueError` if it is none."""
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def _by_layer(value: Any) -> ByLayer:
    rows = tuple(tuple(map(float, row)) for row in value)
    if not all(math.isfinite(figure) and figure >= 0 for row in rows for figure in row):
        raise ValueError("a share of the tokens is negative or not finite")
    return rows


def _number(document: Mapping[str, Any], name: str) -> float:
    value = document[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, no number")
    if not math.isfinite(value) or (name.startswith("copies") and value <= 0):
        raise ValueError(f"{name} is {value}")
    return float(value)
