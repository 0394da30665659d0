"""What a plan sends between devices, predicted from the routing that a profile counted.

Copies count the token's own rank. A token lives on any rank with equal chance, whatever its
experts: of `copies` ranks that it visits its own is one with probability copies / ranks, so
copies * (1 - 1 / ranks) of them are remote. The same holds for nodes, and for k-fold dispatch.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from c2r.errors import InputError, PlanMismatchError
from c2r.plans import (
    ClusterTopology,
    LayerPlan,
    Plan,
    contiguous_placement,
    load_max_over_mean,
    mean_copies,
    mean_distinct,
    mean_node_copies,
    rank_loads,
    remote_share,
    row_loads,
)
from c2r.profiling import CollaborationProfile, LayerProfile
from c2r.types import Int


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTraffic:
    """Predicted traffic of one MoE layer, or the mean over layers; per token.

    Attributes:
        copies_once_per_expert: rows, were one sent per expert: k.
        copies_in_order: distinct ranks that a token visits, its own counted, with the experts
            placed in the order of their ids.
        copies_placed: the same under the plan's placement; measured, it is `Measurement.copies`.
        remote_copies_once_per_expert: expected rows, one per expert, that leave the token's own
            rank.
        remote_copies_in_order: the same of `copies_in_order`.
        remote_copies_placed: the same of `copies_placed`.
        node_copies_in_order: distinct nodes that a token visits, its own counted.
        node_copies_placed: the same under the plan's placement.
        rank_load_max_over_mean: expert rows of the busiest rank over the mean, as placed.
        rank_load_max_over_mean_in_order: the same, experts in the order of their ids.
        expert_load_max_over_mean: tokens of the busiest expert over the mean.
    """

    copies_once_per_expert: float
    copies_in_order: float
    copies_placed: float
    remote_copies_once_per_expert: float
    remote_copies_in_order: float
    remote_copies_placed: float
    node_copies_in_order: float
    node_copies_placed: float
    rank_load_max_over_mean: float
    rank_load_max_over_mean_in_order: float
    expert_load_max_over_mean: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficReport:
    """Predicted traffic of every layer in the model's order, and its mean."""

    topology: ClusterTopology
    layers: tuple[LayerTraffic, ...]

    @property
    def mean(self) -> LayerTraffic:
        """The mean of each figure over layers."""
        return LayerTraffic(
            **{
                field.name: float(np.mean([getattr(layer, field.name) for layer in self.layers]))
                for field in fields(LayerTraffic)
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data: `num_ranks`, `num_nodes`, `layers` and `mean`."""
        return {
            "num_ranks": self.topology.num_ranks,
            "num_nodes": self.topology.num_nodes,
            "layers": [
                {"layer": index, **asdict(layer)} for index, layer in enumerate(self.layers)
            ],
            "mean": asdict(self.mean),
        }


def predict_traffic(profile: CollaborationProfile, plan: Plan) -> TrafficReport:
    """What the tokens of `profile` send under the placement and replicas of `plan`.

    The routing is the profile's own: to predict a constrained model, profile it constrained.

    Raises:
        PlanMismatchError: plan and profile are of models with different layers.
        InputError: the profile has no tokens, or holds pairs only at k > 2.
    """
    check_fit(profile, plan)
    return TrafficReport(
        topology=plan.topology,
        layers=tuple(
            predict_layer(layer, layer_plan, plan.topology, known_sets(index, layer, plan.topology))
            for index, (layer, layer_plan) in enumerate(
                zip(profile.layers, plan.layers, strict=True)
            )
        ),
    )


def bytes_per_token(copies: float, hidden_size: int, dtype_bytes: int = 2) -> float:
    """Bytes that `copies` rows of `hidden_size` values take, one way: to the experts or back."""
    return copies * hidden_size * dtype_bytes


def rows_per_rank(expert_ids: Int, placement: Int, num_ranks: int) -> Int:
    """Tokens that visit each rank: the rows that de-duplicated dispatch sends there, exactly.

    Tokens `[[0, 1], [1, 2]]` under the placement `[0, 0, 1]` make rows `[2, 1]`. With the nodes of
    experts for a placement, the rows to each node.

    Args:
        expert_ids: `[tokens, k]`.
        placement: `[E]` rank of each expert.
        num_ranks: ranks in all.

    Returns:
        `[ranks]` int64.
    """
    visits = np.zeros((len(expert_ids), num_ranks), dtype=np.bool_)
    np.put_along_axis(visits, placement[expert_ids], True, axis=1)
    rows: Int = np.count_nonzero(visits, axis=0)
    return rows


def predict_layer(
    layer: LayerProfile, plan: LayerPlan, topology: ClusterTopology, routing_sets: tuple[Int, Int]
) -> LayerTraffic:
    """The traffic of one layer, from its routing sets and their counts: see `sets_on`."""
    sets, counts = routing_sets
    num_ranks = topology.num_ranks
    contiguous = contiguous_placement(layer.num_experts, num_ranks)
    by_order = mean_copies(sets, counts, contiguous)
    ranks = plan.ranks_of(sets, topology)
    placed = mean_distinct(ranks, counts)
    remote = remote_share(num_ranks)
    return LayerTraffic(
        copies_once_per_expert=float(layer.top_k),
        copies_in_order=by_order,
        copies_placed=placed,
        remote_copies_once_per_expert=layer.top_k * remote,
        remote_copies_in_order=by_order * remote,
        remote_copies_placed=placed * remote,
        node_copies_in_order=mean_node_copies(sets, counts, contiguous, topology),
        node_copies_placed=mean_distinct(ranks // topology.ranks_per_node, counts),
        rank_load_max_over_mean=load_max_over_mean(
            row_loads(ranks, counts, num_ranks)
            if plan.replicas.size
            else rank_loads(layer.load, plan.placement, num_ranks)
        ),
        rank_load_max_over_mean_in_order=load_max_over_mean(
            rank_loads(layer.load, contiguous, num_ranks)
        ),
        expert_load_max_over_mean=load_max_over_mean(layer.load),
    )


def sets_on(layer: LayerProfile, topology: ClusterTopology) -> tuple[Int, Int] | None:
    """The layer's distinct routing sets and their counts, None where unknown.

    On one rank, which every set visits, a single one stands for all.
    """
    if topology.num_ranks == 1:
        return np.zeros((1, 1), dtype=np.int64), np.ones(1, dtype=np.int64)
    return layer.routing_sets()


def known_sets(index: int, layer: LayerProfile, topology: ClusterTopology) -> tuple[Int, Int]:
    """What `sets_on` gives. Raises `InputError` where the layer has no tokens or its sets none."""
    if not layer.load.any():
        raise InputError(f"the profile holds no tokens in layer {index}; profile some text first")
    routing_sets = sets_on(layer, topology)
    if routing_sets is None:
        raise InputError(
            f"the profile holds pairs only, which do not tell the copies per token at "
            f"k = {layer.top_k}; profile the model itself with `c2r profile`"
        )
    return routing_sets


def check_fit(profile: CollaborationProfile, plan: Plan) -> None:
    """Raises `PlanMismatchError` unless both are of models with the same layers."""
    if profile.num_layers != plan.num_layers:
        raise PlanMismatchError(
            f"the profile has {profile.num_layers} MoE layers, the plan {plan.num_layers}; "
            "use a plan made for the same model"
        )
    for index, (layer, layer_plan) in enumerate(zip(profile.layers, plan.layers, strict=True)):
        ours, theirs = (layer.num_experts, layer.top_k), (layer_plan.num_experts, layer_plan.top_k)
        if ours != theirs:
            raise PlanMismatchError(
                f"layer {index} of the profile has {ours[0]} experts with k = {ours[1]}, of the "
                f"plan {theirs[0]} with k = {theirs[1]}; use a plan made for the same model"
            )
