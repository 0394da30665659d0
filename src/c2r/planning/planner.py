"""From a collaboration profile to a plan: a policy and a placement for every layer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from c2r.errors import PlanError
from c2r.planning.placement import PlacementOptions, place_experts, replicate_experts
from c2r.planning.placement.bottleneck import BottleneckCost
from c2r.planning.policies import settings_per_layer
from c2r.plans import contiguous_placement, load_max_over_mean, rank_loads
from c2r.plans.holders import NO_EXPERTS
from c2r.plans.plan import LayerPlan, Plan
from c2r.plans.topology import ClusterTopology
from c2r.prediction import LayerTraffic, TrafficReport, predict_layer, sets_on
from c2r.prediction.cluster import DEFAULT, PRESETS, Cluster
from c2r.prediction.time import best_time, bottleneck_weights
from c2r.prediction.workload import Workload
from c2r.profiling import CollaborationProfile, LayerProfile
from c2r.types import Int

OBJECTIVES = ("time", "sets", "pairs")

Sets = tuple[Int, Int]
"""Distinct routing sets `[sets, k]` and their counts `[sets]`."""


def make_plan(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    profile: CollaborationProfile,
    num_ranks: int = 1,
    top_t: int | Sequence[int] | None = None,
    seed: int = 0,
    *,
    policy: str | None = None,
    strength: float | Sequence[float] | None = None,
    num_nodes: int = 1,
    objective: str | None = None,
    cluster: Cluster | None = None,
    workload: Workload | None = None,
    max_load: float | None = None,
    inter_node_cost: float = 8.0,
    replicas: int = 0,
    num_groups: int = 1,
    on_layer: Callable[[int], None] | None = None,
    on_traffic: Callable[[TrafficReport], None] | None = None,
) -> Plan:
    """The plan for `profile`: experts placed, and the routing policy with what it needs to know.

    Args:
        profile: what was chosen together.
        num_ranks: devices to place the experts on.
        top_t: T, how many partners may accompany a top-1 expert: the strength of the policy
            `"c2r"` by its own name.
        seed: the same profile and seed give the same plan.
        policy: a name in `STRENGTH_NAMES`; `"c2r"` is the published rule. None is placement alone,
            `"top_k"`, but with `top_t` it is `"c2r"`.
        strength: the policy's one number, or one per layer; None takes the default that
            `settings_per_layer` tells.
        num_nodes: machines that the ranks are on.
        objective: `"time"` places for the least predicted time on `cluster`: that of the busiest
            rank and link; `"sets"` for the fewest copies of the tokens counted; `"pairs"` for the
            most co-activation within ranks, which needs no routing sets. None is `"time"` where a
            cluster is given, else `"sets"`.
        cluster: where the plan will run, with as many ranks and nodes; for the objective
            `"time"` 8 H100s in a node, or as many as there are ranks, where none is given.
        workload: what will run there; 4,096 tokens a rank of the profiled model where None.
        max_load: bound on the busiest rank's load over the mean, 1.1 for ten per cent.
        inter_node_cost: what a copy that reaches another node costs, counted in copies between
            ranks of one node: how many times slower the network between nodes is. 8 suits NVLink
            (450 GB/s) beside one 400 Gbit/s adapter per GPU; 0 plans as if all were one node.
        replicas: r, further experts that each rank holds a replica of; a token takes the one on
            a rank that it visits anyway (see `assign_ranks`).
        num_groups: groups of neighbouring experts that the model's routers limit tokens to, kept
            whole so that its checkpoint can be permuted; 1 for none, or where it will not be.
        on_layer: called with the number of each layer when it is planned.
        on_traffic: called with what `predict_traffic` says of the plan, which was predicted for its
            provenance anyway; not called where the profile does not hold the routing sets.

    Raises:
        PlanError: the profile is empty, the strength does not fit, there are more ranks than
            experts, the nodes do not divide the ranks, no placement keeps to `max_load`, the
            replicas do not fit or would raise the largest rank load, or the profile has no
            routing sets to place by.
    """
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    objective = objective or ("sets" if cluster is None else "time")
    _check_profile(profile, objective)
    bottleneck = None
    if objective == "time":
        bottleneck = _bottleneck(profile, topology, cluster, workload)
    policy = policy or ("top_k" if top_t is None else "c2r")
    if top_t is not None:
        strength = _lengths(top_t, policy, strength)
    settings = settings_per_layer(policy, strength, profile.layers, num_ranks)
    layers: list[LayerPlan] = []
    traffic: list[LayerTraffic] = []
    for index, (layer, setting) in enumerate(zip(profile.layers, settings, strict=True)):
        options = PlacementOptions(
            seed=seed + index,
            max_load=max_load,
            inter_node_cost=inter_node_cost,
            bottleneck=bottleneck,
            num_groups=num_groups,
        )
        sets = sets_on(layer, topology)
        placement = _place_layer(layer, sets, topology, objective, options)
        planned = LayerPlan(
            name=layer.name,
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            policy=setting.policy,
            strength=setting.strength,
            partners=setting.partners(layer, placement),
            placement=placement,
            replicas=_replicate_layer(layer, sets, placement, topology, replicas, options),
        )
        layers.append(planned)
        if sets is not None:
            traffic.append(predict_layer(layer, planned, topology, sets))
        if on_layer is not None:
            on_layer(index)
    report = TrafficReport(topology=topology, layers=tuple(traffic))
    if on_traffic is not None and len(traffic) == len(layers):
        on_traffic(report)
    provenance: dict[str, Any] = {
        **_origin(profile),
        "num_tokens": profile.num_tokens,
        "seed": seed,
        "objective": objective,
        "max_load": max_load,
        "inter_node_cost": inter_node_cost,
        "cluster": None if cluster is None else cluster.name,
        "predicted": _predicted(profile, layers, report),
    }
    return Plan(layers=tuple(layers), topology=topology, provenance=provenance)


def _bottleneck(
    profile: CollaborationProfile,
    topology: ClusterTopology,
    cluster: Cluster | None,
    workload: Workload | None,
) -> BottleneckCost:
    """What the busiest rank and node cost in a layer, by the dispatcher that is fastest there."""
    cluster = cluster or PRESETS[DEFAULT].of_size(topology.num_ranks, topology.num_nodes)
    if cluster.topology != topology:
        raise PlanError(
            f"the cluster {cluster.name} has {cluster.num_ranks} ranks on {cluster.num_nodes} "
            f"nodes, not {topology.num_ranks} on {topology.num_nodes}; plan for its ranks and nodes"
        )
    for layer in profile.layers:
        _known(sets_on(layer, topology), layer, 'give objective="pairs"')
    workload = workload or Workload.of(profile)
    fastest = best_time(profile, None, cluster, workload, chunks=(1,))
    load, visits, node_visits = bottleneck_weights(cluster, workload, fastest.dispatcher)
    return BottleneckCost(load=load, visits=visits, node_visits=node_visits)


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
    layer: LayerProfile,
    sets: Sets | None,
    topology: ClusterTopology,
    objective: str,
    options: PlacementOptions,
) -> Int:
    if topology.num_ranks == 1:
        return contiguous_placement(layer.num_experts, 1)
    if objective == "pairs":
        first, second = np.nonzero(np.triu(layer.coactivation, 1))
        pairs = np.stack([first, second], axis=1)
        return place_experts(
            pairs, layer.coactivation[first, second], layer.load, topology, options
        )
    known = _known(sets, layer, 'give objective="pairs"')
    return place_experts(*known, layer.load, topology, options)


def _replicate_layer(
    layer: LayerProfile,
    sets: Sets | None,
    placement: Int,
    topology: ClusterTopology,
    num_replicas: int,
    options: PlacementOptions,
) -> Int:
    if num_replicas == 0:
        return NO_EXPERTS
    known = _known(sets, layer, "plan without replicas")
    return replicate_experts(*known, placement, topology, num_replicas, options)


def _known(sets: Sets | None, layer: LayerProfile, otherwise: str) -> Sets:
    if sets is None:
        raise PlanError(
            f"the profile holds pairs only, which do not tell the routing sets at "
            f"k = {layer.top_k}; {otherwise}, or profile the model itself"
        )
    return sets


def _origin(profile: CollaborationProfile) -> dict[str, Any]:
    fingerprint = profile.provenance.get("model_fingerprint")
    known = {} if fingerprint is None else {"model_fingerprint": fingerprint}
    return {**known, "profile": dict(profile.provenance)}


def _predicted(
    profile: CollaborationProfile, layers: Sequence[LayerPlan], report: TrafficReport
) -> dict[str, float]:
    """Mean figures over layers of the tokens that were profiled; pairs do not tell the copies."""
    if len(report.layers) == len(layers):
        mean = report.mean
        return {
            "rank_load_max_over_mean": mean.rank_load_max_over_mean,
            "copies": mean.copies_placed,
        }
    num_ranks = report.topology.num_ranks
    busiest = [
        load_max_over_mean(rank_loads(layer.load, plan.placement, num_ranks))
        for layer, plan in zip(profile.layers, layers, strict=True)
    ]
    return {"rank_load_max_over_mean": float(np.mean(busiest))}
