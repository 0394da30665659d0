"""From a collaboration profile to a plan: a policy and a placement for every layer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from c2r.errors import PlanError
from c2r.planning.layers import (
    LayerTask,
    Planned,
    Replicas,
    Text,
    bottleneck_cost,
    known,
    plan_layers,
    with_replicas_that_pay,
)
from c2r.planning.placement import PlacementOptions
from c2r.planning.policies import settings_per_layer
from c2r.plans import load_max_over_mean, rank_loads
from c2r.plans.plan import LayerPlan, Plan
from c2r.plans.topology import ClusterTopology
from c2r.prediction import TrafficReport, sets_on
from c2r.prediction.cluster import DESCRIBED, Cluster, default_cluster
from c2r.prediction.memory import check_memory, most_replicas
from c2r.prediction.workload import Workload
from c2r.profiling import CollaborationProfile

OBJECTIVES = ("time", "sets", "pairs")


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
    num_groups: int = 1,
    replicas: Replicas = 0,
    worst_of: Sequence[CollaborationProfile] = (),
    num_threads: int | None = None,
    on_layer: Callable[[int], None] | None = None,
    on_replicas: Callable[[int], None] | None = None,
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
        max_load: bound on the busiest rank's load over the mean, 1.1 for ten per cent. The plan
            stays below it by the sampling error of the profile (`load_margin`) where it can, so
            that the bound holds on other text of the same kind.
        inter_node_cost: what a copy that reaches another node costs, counted in copies between
            ranks of one node: how many times slower the network between nodes is. 8 suits NVLink
            (450 GB/s) beside one 400 Gbit/s adapter per GPU; 0 plans as if all were one node.
        replicas: r, further experts that each rank holds a replica of; a token takes the one on
            a rank that it visits anyway (see `assign_ranks`). `"auto"` holds as many as save
            predicted time and fit the memory of the cluster's ranks: the same number in every
            layer, as engines want it.
        num_groups: groups of neighbouring experts that the model's routers limit tokens to, kept
            whole so that its checkpoint can be permuted; 1 for none, or where it will not be.
        worst_of: profiles of several kinds of text: each layer is then placed for the worst of
            them, and `max_load` holds in each. Lists of partners are those of `profile`, which
            holds them all, as `merge` gives it.
        num_threads: layers planned at a time; None for one a core, or one where they are small.
            The plan is the same.
        on_layer: called with the number of each layer when it is planned; of `replicas="auto"`
            again for each number that is tried.
        on_replicas: called with each number that `replicas="auto"` tries, before the layers.
        on_traffic: called with what `predict_traffic` says of the plan, which was predicted for its
            provenance anyway; not called where the profile does not hold the routing sets.

    Raises:
        PlanError: the profile is empty, the strength does not fit, there are more ranks than
            experts, the nodes do not divide the ranks, no placement keeps to `max_load`, the
            replicas do not fit, in experts or in memory, or would raise the largest rank load,
            the profile has no routing sets to place by, or profiles are of several models.
    """
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    objective = objective or ("sets" if cluster is None else "time")
    _check_profile(profile, objective)
    policy = policy or ("top_k" if top_t is None else "c2r")
    if top_t is not None:
        strength = _lengths(top_t, policy, strength)
    settings = settings_per_layer(policy, strength, profile.layers, num_ranks)
    _check_texts(profile, worst_of, objective)
    sets = [sets_on(layer, topology) for layer in profile.layers]
    where, bottleneck = None, None
    if objective == "time":
        where = _cluster(cluster, topology), workload or Workload.of(profile)
        bottleneck = bottleneck_cost(profile.layers, sets, *where)
    fitting = _most_replicas(profile, replicas, objective, where)
    tasks = [
        LayerTask(
            layer=layer,
            sets=sets[index],
            texts=_texts(worst_of, index, topology),
            setting=setting,
            topology=topology,
            objective=objective,
            options=PlacementOptions(
                seed=seed + index,
                max_load=max_load,
                inter_node_cost=inter_node_cost,
                bottleneck=bottleneck,
                num_groups=num_groups,
            ),
            replicas=0 if replicas == "auto" else replicas,
        )
        for index, (layer, setting) in enumerate(zip(profile.layers, settings, strict=True))
    ]
    run = partial(_run, num_threads=num_threads, on_layer=on_layer)
    planned = run(tasks)
    if replicas == "auto" and where is not None:
        planned = with_replicas_that_pay(tasks, planned, fitting, where, run, on_replicas)
    layers = [layer for layer, _ in planned]
    traffic = [sent for _, sent in planned if sent is not None]
    report = TrafficReport(topology=topology, layers=tuple(traffic))
    if on_traffic is not None and len(traffic) == len(layers):
        on_traffic(report)
    provenance: dict[str, Any] = {
        **_origin(profile),
        "num_tokens": profile.num_tokens,
        "seed": seed,
        "objective": objective,
        "max_load": max_load,
        "load_margin": float(np.mean([task.margin for task in tasks])),
        "worst_of": len(worst_of),
        "inter_node_cost": inter_node_cost if objective == "sets" else None,
        "cluster": None if cluster is None else cluster.name,
        **({} if cluster is None else {DESCRIBED: cluster.to_json()}),
        **_workload(where),
        "predicted": _predicted(profile, layers, report),
    }
    return Plan(layers=tuple(layers), topology=topology, provenance=provenance)


def _run(
    tasks: Sequence[LayerTask], num_threads: int | None, on_layer: Callable[[int], None] | None
) -> Sequence[Planned]:
    return list(plan_layers(tasks, num_threads, on_layer))


def _cluster(cluster: Cluster | None, topology: ClusterTopology) -> Cluster:
    cluster = cluster or default_cluster(topology.num_ranks, topology.num_nodes)
    if cluster.topology != topology:
        raise PlanError(
            f"the cluster {cluster.name} has {cluster.num_ranks} ranks on {cluster.num_nodes} "
            f"nodes, not {topology.num_ranks} on {topology.num_nodes}; plan for its ranks and nodes"
        )
    return cluster


def _workload(where: tuple[Cluster, Workload] | None) -> dict[str, Any]:
    if where is None:
        return {}
    _, work = where
    return {"workload": {"tokens_per_rank": work.tokens_per_rank, "phase": str(work.phase)}}


def _most_replicas(
    profile: CollaborationProfile,
    replicas: Replicas,
    objective: str,
    where: tuple[Cluster, Workload] | None,
) -> int:
    """Replicas of a rank that fit its memory; raises `PlanError` where those asked for do not."""
    if where is None or objective != "time":
        if replicas == "auto":
            raise PlanError(
                f"replicas by themselves are those that save time, and the objective is "
                f'{objective}; plan with objective="time", or give a number of replicas'
            )
        return profile.num_experts
    experts = [layer.num_experts for layer in profile.layers]
    if replicas != "auto":
        check_memory(*where, experts, replicas)
    return most_replicas(*where, experts)


def _check_texts(
    profile: CollaborationProfile, worst_of: Sequence[CollaborationProfile], objective: str
) -> None:
    for other in worst_of:
        _check_profile(other, objective)
        if _shapes(other) != _shapes(profile):
            raise PlanError(
                f"a profile of {other.num_layers} layers is of another model than that of "
                f"{profile.num_layers}; give profiles of one model (worst_of, --worst)"
            )
    if worst_of and objective == "pairs":
        raise PlanError('the worst text is found by its routing sets; leave out objective="pairs"')


def _texts(
    worst_of: Sequence[CollaborationProfile], index: int, topology: ClusterTopology
) -> tuple[Text, ...]:
    """The sets, their counts and the experts' load of a layer in each text."""
    layers = [text.layers[index] for text in worst_of]
    return tuple(
        (*known(sets_on(layer, topology), layer, "leave out worst_of"), layer.load)
        for layer in layers
    )


def _shapes(profile: CollaborationProfile) -> list[tuple[int, int]]:
    return [(layer.num_experts, layer.top_k) for layer in profile.layers]


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
