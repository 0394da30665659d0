"""Where the experts of the timed layers are, planned from text that is not timed."""

from dataclasses import dataclass

from c2r.errors import PlanError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, Plan
from c2r.prediction import Cluster, Workload
from c2r.profiling import CollaborationProfile

BOUNDS = (1.1, 1.15, 1.2, 1.3, 1.5)
"""Bounds on the load that are tried, where none is asked for: the first that can be kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placing:
    """How experts are placed.

    Attributes:
        topology: the ranks.
        max_load: bound on the busiest rank's load over the mean; None takes the first of `BOUNDS`.
        cluster: place for the least time there; None places for the fewest copies.
        workload: what runs there.
        replicas: further experts of each rank.
    """

    topology: ClusterTopology
    max_load: float | None = None
    cluster: Cluster | None = None
    workload: Workload | None = None
    replicas: int = 0


def place(profile: CollaborationProfile, placing: Placing) -> tuple[Plan, float]:
    """The plan, every expert a partner of every other; and the bound on the load that it keeps.

    Raises `PlanError` as `make_plan`: no bound can be kept, or not the one asked for.
    """
    num_experts = profile.layers[0].num_experts
    *bounds, last = BOUNDS if placing.max_load is None else (placing.max_load,)
    for bound in bounds:
        try:
            return _plan(profile, placing, num_experts, bound), bound
        except PlanError:
            continue  # the next may do; the last tells why not
    return _plan(profile, placing, num_experts, last), last


def _plan(
    profile: CollaborationProfile, placing: Placing, num_experts: int, max_load: float
) -> Plan:
    return make_plan(
        profile,
        num_ranks=placing.topology.num_ranks,
        num_nodes=placing.topology.num_nodes,
        top_t=num_experts - 1,
        max_load=max_load,
        cluster=placing.cluster,
        workload=placing.workload,
        replicas=placing.replicas,
    )
