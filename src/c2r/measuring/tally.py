"""What one plan costs and sends on text: sums that grow batch by batch, and what they come to."""

import math
from copy import copy
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.measuring.forward import ForwardPass
from c2r.plans import LayerPlan, Plan, contiguous_placement, load_max_over_mean, remote_share
from c2r.results import Measurement, Strength, renamed
from c2r.traces import LayerTrace, RoutingTrace, used_places
from c2r.types import Float

_QUANTILE = 1.96  # of the normal distribution, for 95 % intervals


@dataclass(kw_only=True, slots=True, eq=False)
class RoutingTally:
    """Sums over the tokens of each layer: `[layers]` each.

    `rank_rows` and `rank_visits` are `[layers, ranks]`, `node_visits` `[layers, nodes]`.
    """

    num_tokens: Float
    copies: Float
    copies_in_order: Float
    node_copies: Float
    active_experts: Float
    rank_rows: Float
    rank_visits: Float
    node_visits: Float

    @classmethod
    def count(cls, trace: RoutingTrace, plan: Plan) -> "RoutingTally":
        """The sums of one batch."""
        pairs = zip(trace.layers, plan.layers, strict=True)
        rows = [_count_layer(layer, layer_plan, plan) for layer, layer_plan in pairs]
        return cls(**{f.name: np.array([row[f.name] for row in rows]) for f in fields(cls)})

    def add(self, other: "RoutingTally") -> None:
        """Adds the sums of other tokens."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))

    def to_json(self) -> dict[str, Any]:
        """The sums as JSON data, for `from_json`."""
        return {name: values.tolist() for name, values in asdict(self).items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "RoutingTally":
        """The sums that `to_json` gave."""
        return cls(**{name: np.array(values) for name, values in renamed(document).items()})

    def means(self) -> dict[str, float]:
        """Copies per token, as planned and in order, and rank load; means over layers."""
        return {
            "copies": float((self.copies / self.num_tokens).mean()),
            "copies_in_order": float((self.copies_in_order / self.num_tokens).mean()),
            "rank_load_max_over_mean": float(
                np.mean([load_max_over_mean(rows) for rows in self.rank_rows])
            ),
        }


def _count_layer(trace: LayerTrace, layer: LayerPlan, plan: Plan) -> dict[str, Any]:
    ids, num_ranks = trace.expert_ids, plan.topology.num_ranks
    ranks = torch.as_tensor(layer.ranks_of(ids.cpu().numpy(), plan.topology), device=ids.device)
    by_order = torch.as_tensor(
        contiguous_placement(layer.num_experts, num_ranks), device=ids.device
    )[ids]
    kept = used_places(ids)
    nodes = ranks // plan.topology.ranks_per_node
    visits, node_visits = _visits(ranks, num_ranks), _visits(nodes, plan.topology.num_nodes)
    return {
        "num_tokens": float(len(ids)),
        "copies": float(visits.sum()),
        "copies_in_order": float(_visits(by_order, num_ranks).sum()),
        "node_copies": float(node_visits.sum()),
        "rank_visits": visits.tolist(),
        "node_visits": node_visits.tolist(),
        "active_experts": len(torch.unique(ids[kept])) / num_ranks,
        "rank_rows": torch.bincount(ranks[kept], minlength=num_ranks).double().tolist(),
    }


def _visits(places: Tensor, num_places: int) -> Tensor:
    """`[places]` tokens that visit each place at least once, of the places `[tokens, k]`."""
    visited = torch.zeros(len(places), num_places, dtype=torch.bool, device=places.device)
    return visited.scatter_(1, places, True).sum(0)


@dataclass(kw_only=True, slots=True, eq=False)
class Tally:
    """Sums of one plan over the windows of text so far.

    Attributes:
        losses: nats of each window.
        num_predicted: predicted tokens of each window.
        kl: nats, over all predicted tokens.
        num_agreeing: predicted tokens with the reference's likeliest next token.
        num_batches: forward passes.
        routing: sums over tokens; None before the first batch.
    """

    losses: list[float] = field(default_factory=list)
    num_predicted: list[int] = field(default_factory=list)
    kl: float = 0.0
    num_agreeing: int = 0
    num_batches: int = 0
    routing: RoutingTally | None = None

    def add(self, other: "Tally") -> None:
        """Adds the sums of other windows."""
        self.losses += other.losses
        self.num_predicted += other.num_predicted
        self.kl += other.kl
        self.num_agreeing += other.num_agreeing
        if other.routing is not None:
            self.add_routing(other.routing)
            self.num_batches += other.num_batches - 1

    def add_routing(self, routing: RoutingTally) -> None:
        """Adds the routing of one batch."""
        self.num_batches += 1
        if self.routing is None:
            self.routing = routing
        else:
            self.routing.add(routing)

    def add_windows(self, found: ForwardPass, reference: ForwardPass) -> None:
        """Adds every row of a batch in which a token is predicted, as a window of its own."""
        for row, kept in enumerate(found.is_predicted):
            if kept.any():
                ours, theirs = (pass_.logits[row][kept] for pass_ in (found, reference))
                self.add_window(ours, theirs, found.targets[row][kept])

    def add_window(self, logits: Tensor, reference: Tensor, targets: Tensor) -> None:
        """Adds one window: `[predicted, vocabulary]` logits, `[predicted]` token ids."""
        ours, theirs = (values.float().log_softmax(-1) for values in (logits, reference))
        losses = -ours.gather(-1, targets[:, None])
        chance = theirs.exp()
        divergence = (chance * (theirs - ours)).masked_fill_(chance == 0, 0.0)
        self.losses.append(float(losses.double().sum()))
        self.num_predicted.append(len(targets))
        self.kl += float(divergence.double().sum())
        self.num_agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())

    def measured(self, plan: Plan, reference: "Tally | None" = None) -> Measurement:
        """What it comes to so far; at least one token must have been predicted.

        Args:
            plan: the plan that was tallied.
            reference: of plain top-k on the same windows; None where this is plain top-k.
        """
        assert self.routing is not None, "a batch was counted"
        routing, total = self.routing, sum(self.num_predicted)
        means = routing.means()
        loss = sum(self.losses) / total
        increase, interval = self.loss_increase(self if reference is None else reference)
        return Measurement(
            policy="+".join(dict.fromkeys(layer.policy for layer in plan.layers)),
            strength=_shared([layer.strength for layer in plan.layers]),
            loss=loss,
            perplexity=math.exp(loss),
            kl=self.kl / total,
            copies=means["copies"],
            copies_in_order=means["copies_in_order"],
            rank_load_max_over_mean=means["rank_load_max_over_mean"],
            top1_agreement=self.num_agreeing / total,
            remote_copies=means["copies"] * remote_share(plan.topology.num_ranks),
            node_copies=float((routing.node_copies / routing.num_tokens).mean()),
            active_experts_per_rank=float(routing.active_experts.mean() / self.num_batches),
            num_tokens=total,
            loss_increase=increase,
            loss_increase_interval=interval,
            plan_fingerprint=plan.fingerprint,
            num_ranks=plan.topology.num_ranks,
            rank_rows=_per_token(routing.rank_rows, routing.num_tokens),
            rank_visits=_per_token(routing.rank_visits, routing.num_tokens),
            node_visits=_per_token(routing.node_visits, routing.num_tokens),
        )

    def loss_increase(self, reference: "Tally") -> tuple[float, tuple[float, float]]:
        """Loss over the reference's minus 1, and its 95 % interval.

        The interval is that of the mean of paired differences, window by window (normal
        approximation, windows independent).
        """
        tokens = np.array(self.num_predicted, dtype=np.float64)
        differences = np.array(self.losses) - np.array(reference.losses)
        mean, count = differences.sum() / tokens.sum(), len(tokens)
        spread = np.square(differences - mean * tokens).sum() * count / max(count - 1, 1)
        half = _QUANTILE * math.sqrt(spread) / tokens.sum()
        base = sum(reference.losses) / tokens.sum()
        return float(mean / base), (float((mean - half) / base), float((mean + half) / base))

    def to_json(self) -> dict[str, Any]:
        """The sums so far as JSON data."""
        document = {f.name: copy(getattr(self, f.name)) for f in fields(self)}
        if self.routing is not None:
            document["routing"] = self.routing.to_json()
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Tally":
        """The sums that `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or is no number.
        """
        for name, value in document.items():
            if name != "routing":
                np.asarray(value, dtype=np.float64)
        routing = document["routing"]
        if routing is not None:
            routing = RoutingTally.from_json(routing)
        return cls(**{**document, "routing": routing})


def _per_token(sums: Float, num_tokens: Float) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, (sums / num_tokens[:, None]).tolist()))


def _shared(strengths: list[float]) -> Strength:
    return strengths[0] if len(set(strengths)) == 1 else tuple(strengths)
