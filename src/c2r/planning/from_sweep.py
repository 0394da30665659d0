"""The plan of a sweep's measured point that meets a target."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from c2r.errors import PlanMismatchError, one_line
from c2r.planning.planner import make_plan
from c2r.plans import ClusterTopology, Plan
from c2r.prediction import Phase, Workload, find_cluster
from c2r.prediction.cluster import DESCRIBED, Cluster, cluster_within, default_cluster
from c2r.profiling import CollaborationProfile
from c2r.results import SweepResult, Target


def placing(request: Mapping[str, Any], profile: CollaborationProfile) -> dict[str, Any]:
    """What `make_plan` was told by a sweep, of which `request` is JSON data, to place experts."""
    arguments = {name: request[name] for name in ("num_ranks", "num_nodes")}
    arguments |= {"seed": request.get("seed", 0), "max_load": request.get("max_load")}
    if request.get("objective", "sets") == "sets" and request.get("cluster") is None:
        return arguments  # of an earlier version, which placed for copies
    cluster = cluster_of(request)
    phase = request.get("phase", Phase.PREFILL)
    if phase not in list(Phase):
        raise PlanMismatchError(f"the sweep was of {one_line(phase)}, not {', '.join(Phase)}")
    workload = Workload.of(profile, request.get("tokens_per_rank", 4096), Phase(phase))
    return {**arguments, "cluster": cluster, "workload": workload}


def cluster_of(request: Mapping[str, Any]) -> Cluster:
    """The cluster that a sweep describes or names; else as many ranks of the default kind.

    Raises `InputError` as `cluster_within` and `find_cluster`.
    """
    if request.get(DESCRIBED) is None and request.get("cluster") is not None:
        return find_cluster(request["cluster"])
    topology = ClusterTopology(num_ranks=request["num_ranks"], num_nodes=request["num_nodes"])
    found = cluster_within(request, topology, "sweep")
    return found or default_cluster(topology.num_ranks, topology.num_nodes)


def plan_from_sweep(
    sweep: SweepResult,
    profile: CollaborationProfile,
    topology: ClusterTopology,
    target: Target,
) -> Plan:
    """The plan of the measured point that meets `target` best.

    Its provenance holds the target, and under `expected` the measurement as JSON data.

    Args:
        sweep: of the model that is planned for.
        profile: the one that the sweep planned by, which it wrote beside its JSON.
        topology: the devices of the sweep.
        target: what the plan must meet.

    Raises:
        PlanError: no point meets the target.
        PlanMismatchError: the sweep was of other devices or of another profile.
    """
    swept = sweep.topology
    if swept != topology:
        raise PlanMismatchError(
            f"the sweep is of {swept.num_ranks} ranks on {swept.num_nodes} nodes, not of "
            f"{topology.num_ranks} on {topology.num_nodes}; sweep those"
        )
    found = sweep.pick(target)
    plan = make_plan(
        profile,
        policy=found.policy,
        strength=found.strength,
        **placing(sweep.request, profile),
    )
    if plan.fingerprint != found.plan_fingerprint:
        raise PlanMismatchError(
            "the sweep planned by another profile, or by another version of c2r; give the one "
            "that it wrote beside its JSON (*.profile.safetensors), or sweep again"
        )
    provenance = {**plan.provenance, "target": asdict(target), "expected": found.to_json()}
    return replace(plan, provenance=provenance)
