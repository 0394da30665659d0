"""From a collaboration profile to a plan: partner lists and a placement for every layer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from c2r.errors import PlanError
from c2r.ops.limits import check_top_t
from c2r.planning.partners import rank_partners
from c2r.planning.placement import (
    PlacementOptions,
    check_ranks,
    contiguous_placement,
    load_max_over_mean,
    mean_copies,
    place_experts,
    rank_loads,
)
from c2r.planning.plan import Int, LayerPlan, Plan
from c2r.planning.topology import ClusterTopology
from c2r.profiling import CollaborationProfile, LayerProfile

OBJECTIVES = ("sets", "pairs")


def make_plan(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    profile: CollaborationProfile,
    num_ranks: int = 1,
    top_t: int | Sequence[int] | None = None,
    seed: int = 0,
    *,
    num_nodes: int = 1,
    objective: str = "sets",
    max_load: float | None = None,
    on_layer: Callable[[int], None] | None = None,
) -> Plan:
    """The plan of the published rule for `profile`: partners by co-activation, experts placed.

    Args:
        profile: what was chosen together.
        num_ranks: devices to place the experts on.
        top_t: T, how many partners may accompany a top-1 expert; one number, or one per layer.
            None takes half of the experts, as the authors do for Qwen1.5-MoE (30 of 60), but no
            fewer than k - 1.
        seed: the same profile and seed give the same plan.
        num_nodes: machines that the ranks are on.
        objective: `"sets"` places for the fewest copies of the tokens counted; `"pairs"` for the
            most co-activation within ranks, which needs no routing sets.
        max_load: bound on the busiest rank's load over the mean, 1.1 for ten per cent.
        on_layer: called with the number of each layer when it is planned.

    Raises:
        PlanError: the profile is empty, T does not fit, there are more ranks than experts, the
            nodes do not divide the ranks, no placement keeps to `max_load`, or the profile has
            no routing sets to place by.
    """
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    _check_profile(profile, objective)
    lengths = _lengths(profile, top_t)
    for layer, length in zip(profile.layers, lengths, strict=True):
        check_top_t(length, layer.num_experts, layer.top_k)
        check_ranks(layer.num_experts, num_ranks)
    layers = []
    for index, (layer, length) in enumerate(zip(profile.layers, lengths, strict=True)):
        options = PlacementOptions(seed=seed + index, max_load=max_load)
        layers.append(
            LayerPlan(
                name=layer.name,
                num_experts=layer.num_experts,
                top_k=layer.top_k,
                policy="c2r",
                strength=float(length),
                partners=rank_partners(layer.coactivation)[:, :length],
                placement=_place_layer(layer, topology, objective, options),
            )
        )
        if on_layer is not None:
            on_layer(index)
    provenance: dict[str, Any] = {
        **_origin(profile),
        "num_tokens": profile.num_tokens,
        "seed": seed,
        "objective": objective,
        "max_load": max_load,
        "predicted": _predict(profile, layers, num_ranks),
    }
    return Plan(layers=tuple(layers), topology=topology, provenance=provenance)


def _check_profile(profile: CollaborationProfile, objective: str) -> None:
    if objective not in OBJECTIVES:
        raise PlanError(f"objective {objective!r} is unknown; choose {' or '.join(OBJECTIVES)}")
    empty = [index for index, layer in enumerate(profile.layers) if not layer.load.any()]
    if empty or not profile.layers:
        raise PlanError(
            f"the profile holds no tokens in {len(empty)} of {len(profile.layers)} layers; "
            "profile the model on some text first"
        )


def _lengths(profile: CollaborationProfile, top_t: int | Sequence[int] | None) -> list[int]:
    if top_t is None:
        return [
            min(max(layer.top_k - 1, layer.num_experts // 2), layer.num_experts - 1)
            for layer in profile.layers
        ]
    if isinstance(top_t, int | np.integer):
        return [int(top_t)] * profile.num_layers
    if len(top_t) != profile.num_layers:
        raise PlanError(
            f"{len(top_t)} values of T for {profile.num_layers} layers; "
            f"give one number, or {profile.num_layers}"
        )
    return [int(length) for length in top_t]


def _place_layer(
    layer: LayerProfile, topology: ClusterTopology, objective: str, options: PlacementOptions
) -> Int:
    if topology.num_ranks == 1:
        return contiguous_placement(layer.num_experts, 1)
    if objective == "pairs":
        first, second = np.nonzero(np.triu(layer.coactivation, 1))
        pairs = np.stack([first, second], axis=1)
        return place_experts(
            pairs, layer.coactivation[first, second], layer.load, topology, options
        )
    routing_sets = layer.routing_sets()
    if routing_sets is None:
        raise PlanError(
            f"the profile holds pairs only, which do not tell the routing sets at "
            f"k = {layer.top_k}; ask for the objective pairs (--objective pairs), or profile the "
            "model itself"
        )
    return place_experts(*routing_sets, layer.load, topology, options)


def _origin(profile: CollaborationProfile) -> dict[str, Any]:
    fingerprint = profile.provenance.get("model_fingerprint")
    known = {} if fingerprint is None else {"model_fingerprint": fingerprint}
    return {**known, "profile": dict(profile.provenance)}


def _predict(
    profile: CollaborationProfile, layers: Sequence[LayerPlan], num_ranks: int
) -> dict[str, float]:
    """Mean figures over layers of the tokens that were profiled."""
    busiest = [
        load_max_over_mean(rank_loads(layer.load, plan.placement, num_ranks))
        for layer, plan in zip(profile.layers, layers, strict=True)
    ]
    figures = {"rank_load_max_over_mean": float(np.mean(busiest))}
    copies = [
        mean_copies(*routing_sets, plan.placement)
        for layer, plan in zip(profile.layers, layers, strict=True)
        if (routing_sets := layer.routing_sets()) is not None
    ]
    if len(copies) == len(layers):
        figures["copies"] = float(np.mean(copies))
    return figures
