"""From a collaboration profile to a plan: a policy and a placement for every layer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from c2r.errors import PlanError
from c2r.planning.placement import PlacementOptions, place_experts, replicate_experts
from c2r.planning.policies import settings_per_layer
from c2r.plans import contiguous_placement, load_max_over_mean, mean_distinct, rank_loads, row_loads
from c2r.plans.plan import LayerPlan, Plan
from c2r.plans.topology import ClusterTopology
from c2r.profiling import CollaborationProfile, LayerProfile
from c2r.types import Int

OBJECTIVES = ("sets", "pairs")


def make_plan(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    profile: CollaborationProfile,
    num_ranks: int = 1,
    top_t: int | Sequence[int] | None = None,
    seed: int = 0,
    *,
    policy: str = "c2r",
    strength: float | Sequence[float] | None = None,
    num_nodes: int = 1,
    objective: str = "sets",
    max_load: float | None = None,
    inter_node_cost: float = 8.0,
    replicas: int = 0,
    on_layer: Callable[[int], None] | None = None,
) -> Plan:
    """The plan for `profile`: experts placed, and the routing policy with what it needs to know.

    Args:
        profile: what was chosen together.
        num_ranks: devices to place the experts on.
        top_t: T, how many partners may accompany a top-1 expert: the strength of the policy
            `"c2r"` by its own name.
        seed: the same profile and seed give the same plan.
        policy: a name in `STRENGTH_NAMES`; `"c2r"` is the published rule.
        strength: the policy's one number, or one per layer; None takes the default that
            `settings_per_layer` tells.
        num_nodes: machines that the ranks are on.
        objective: `"sets"` places for the fewest copies of the tokens counted; `"pairs"` for the
            most co-activation within ranks, which needs no routing sets.
        max_load: bound on the busiest rank's load over the mean, 1.1 for ten per cent.
        inter_node_cost: what a copy that reaches another node costs, counted in copies between
            ranks of one node: how many times slower the network between nodes is. 8 suits NVLink
            (450 GB/s) beside one 400 Gbit/s adapter per GPU; 0 plans as if all were one node.
        replicas: r, further experts that each rank holds a replica of; a token takes the one on
            a rank that it visits anyway (see `assign_ranks`).
        on_layer: called with the number of each layer when it is planned.

    Raises:
        PlanError: the profile is empty, the strength does not fit, there are more ranks than
            experts, the nodes do not divide the ranks, no placement keeps to `max_load`, the
            replicas do not fit or would raise the largest rank load, or the profile has no
            routing sets to place by.
    """
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    _check_profile(profile, objective)
    if top_t is not None:
        strength = _lengths(top_t, policy, strength)
    settings = settings_per_layer(policy, strength, profile.layers, num_ranks)
    layers = []
    for index, (layer, setting) in enumerate(zip(profile.layers, settings, strict=True)):
        options = PlacementOptions(
            seed=seed + index, max_load=max_load, inter_node_cost=inter_node_cost
        )
        placement = _place_layer(layer, topology, objective, options)
        layers.append(
            LayerPlan(
                name=layer.name,
                num_experts=layer.num_experts,
                top_k=layer.top_k,
                policy=setting.policy,
                strength=setting.strength,
                partners=setting.partners(layer, placement),
                placement=placement,
                replicas=_replicate_layer(layer, placement, topology, replicas, options),
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
        "inter_node_cost": inter_node_cost,
        "predicted": _predict(profile, layers, topology),
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


def _lengths(
    top_t: int | Sequence[int], policy: str, strength: float | Sequence[float] | None
) -> float | Sequence[float]:
    if policy != "c2r" or strength is not None:
        raise PlanError(f"T is the strength of the policy c2r; give {policy} its strength only")
    return top_t


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
    sets, counts = _routing_sets(layer, "ask for the objective pairs (--objective pairs)")
    return place_experts(sets, counts, layer.load, topology, options)


def _replicate_layer(
    layer: LayerProfile,
    placement: Int,
    topology: ClusterTopology,
    num_replicas: int,
    options: PlacementOptions,
) -> Int:
    if num_replicas == 0:
        return np.empty((0, 0), dtype=np.int64)
    sets, counts = _routing_sets(layer, "plan without replicas")
    return replicate_experts(sets, counts, placement, topology, num_replicas, options)


def _routing_sets(layer: LayerProfile, otherwise: str) -> tuple[Int, Int]:
    routing_sets = layer.routing_sets()
    if routing_sets is None:
        raise PlanError(
            f"the profile holds pairs only, which do not tell the routing sets at "
            f"k = {layer.top_k}; {otherwise}, or profile the model itself"
        )
    return routing_sets


def _origin(profile: CollaborationProfile) -> dict[str, Any]:
    fingerprint = profile.provenance.get("model_fingerprint")
    known = {} if fingerprint is None else {"model_fingerprint": fingerprint}
    return {**known, "profile": dict(profile.provenance)}


def _predict(
    profile: CollaborationProfile, layers: Sequence[LayerPlan], topology: ClusterTopology
) -> dict[str, float]:
    """Mean figures over layers of the tokens that were profiled."""
    busiest, copies = [], []
    for layer, plan in zip(profile.layers, layers, strict=True):
        loads = rank_loads(layer.load, plan.placement, topology.num_ranks)
        if (routing_sets := layer.routing_sets()) is not None:
            sets, counts = routing_sets
            ranks = plan.ranks_of(sets, topology)
            copies.append(mean_distinct(ranks, counts))
            if plan.replicas.size:
                loads = row_loads(ranks, counts, topology.num_ranks)
        busiest.append(load_max_over_mean(loads))
    figures = {"rank_load_max_over_mean": float(np.mean(busiest))}
    if len(copies) == len(layers):
        figures["copies"] = float(np.mean(copies))
    return figures
