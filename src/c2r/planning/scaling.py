"""What exchange takes, and what each way to lessen it saves, on few to thousands of ranks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from c2r.errors import InputError
from c2r.planning.layers import bottleneck_cost
from c2r.planning.placement import PlacementOptions, place_experts, replicate_experts
from c2r.plans import ClusterTopology, LayerPlan, Plan, contiguous_placement
from c2r.plans.holders import NO_EXPERTS
from c2r.prediction import Cluster, StepTime, Workload, best_time, predict_time
from c2r.prediction.needs import sharing_group
from c2r.prediction.traffic import known_sets
from c2r.profiling import CollaborationProfile, IdProfileBuilder

SIZES = tuple(8 << exponent for exponent in range(9))
"""Ranks: 8 to 2,048."""
_SEVERAL = ClusterTopology(num_ranks=2)  # on which sets are asked for
_EFFORT = 0.02  # of the search for a placement: seconds a layer on hundreds of ranks
_MOST_PLANNED = 2_048  # tokens of a layer that are planned on; the others judge


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePoint:
    """One number of ranks.

    Attributes:
        num_ranks: devices.
        group_ranks: ranks that share the experts of a layer; `num_ranks / group_ranks` groups have
            them all, each for its own tokens.
        group_nodes: machines of a group.
        steps: the step by what is done about exchange, in the order of `saved`: `k_fold`, `once`
            per rank, `hierarchical` where nodes have several ranks, `placed`, `replicas` and
            `policy` where they are known.
    """

    num_ranks: int
    group_ranks: int
    group_nodes: int
    steps: Mapping[str, StepTime]

    @property
    def saved(self) -> dict[str, float]:
        """What each saves on top of the best before it, as a share of the k-fold step.

        Less than nothing where it is slower than what there was.
        """
        base = best = self.steps["k_fold"].total
        found = {}
        for name, step in self.steps.items():
            if name != "k_fold":
                found[name] = (best - step.total) / base
                best = min(best, step.total)
        return found

    def to_json(self) -> dict[str, Any]:
        """The point as JSON data: milliseconds of steps, shares of the k-fold step."""
        return {
            "num_ranks": self.num_ranks,
            "group_ranks": self.group_ranks,
            "group_nodes": self.group_nodes,
            "exchange_share": {name: step.exchange_share for name, step in self.steps.items()},
            "step": {name: step.total for name, step in self.steps.items()},
            "layer": {name: step.layer for name, step in self.steps.items()},
            "saved": self.saved,
        }


def estimate_scale(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    profile: CollaborationProfile,
    cluster: Cluster,
    workload: Workload,
    *,
    sizes: Sequence[int] = SIZES,
    num_layers: int = 2,
    replicas: int = 0,
    constrained: tuple[Plan, CollaborationProfile] | None = None,
    seed: int = 0,
) -> Iterator[ScalePoint]:
    """The step on ranks of the kind of `cluster`, one number of ranks after the other.

    As many ranks as the largest power of two that is no more than the experts form a group that
    shares them; further ranks are further groups, whose tokens are their own. What groups exchange
    among themselves, the gradients, is not counted. Experts are placed anew for every size, on
    half of the tokens or 2,048; times are those of the others.

    Args:
        profile: the routing, with sets.
        cluster: whose ranks, nodes' size and links are taken.
        workload: tokens of each rank.
        sizes: numbers of ranks.
        num_layers: so many layers of the profile stand for all, evenly chosen.
        replicas: further experts that each rank holds; 0 for none.
        constrained: a plan with a policy, and the profile of the model under it; its sets are used
            on the plan's ranks, and of the policy "c2r", whose lists know no ranks, on any.
        seed: of placements and halves.

    Raises:
        InputError, PlanError: the profile has no tokens or no sets, or a size is not positive.
    """
    planned, judged = _halves(profile, num_layers, seed)
    under = (
        None if constrained is None else (constrained[0], some_layers(constrained[1], num_layers))
    )
    count = max(workload.sizes.num_moe_layers, 1)
    known: dict[int, ScalePoint] = {}  # by the ranks of a group: more ranks are more of the same
    for size in sizes:
        if size < 1:
            raise InputError(f"{size} ranks; give 1 or more")
        where = sharing_group(cluster, size, min(layer.num_experts for layer in planned.layers))
        if where.num_ranks not in known:
            settings: dict[str, Any] = {"cluster": where, "workload": workload}
            plan = _plan(planned, **settings, replicas=replicas, seed=seed)
            steps = _steps(judged, plan, **settings)
            if under is not None and _is_measured(under[0], where):
                steps["policy"] = best_time(under[1], plan, **settings, chunks=(1,))
            known[where.num_ranks] = ScalePoint(
                num_ranks=size,
                group_ranks=where.num_ranks,
                group_nodes=where.num_nodes,
                steps={name: of_all_layers(step, count) for name, step in steps.items()},
            )
        yield replace(known[where.num_ranks], num_ranks=size)


def _plan(
    profile: CollaborationProfile, cluster: Cluster, workload: Workload, replicas: int, seed: int
) -> Plan:
    """Placement for time as `make_plan` does it, by a shorter search."""
    topology, layers = cluster.topology, []
    known = [known_sets(index, layer, topology) for index, layer in enumerate(profile.layers)]
    bottleneck = bottleneck_cost(profile.layers, known, cluster, workload)
    options = PlacementOptions(seed=seed, effort=_EFFORT, bottleneck=bottleneck)
    for layer, (sets, counts) in zip(profile.layers, known, strict=True):
        placement = contiguous_placement(layer.num_experts, topology.num_ranks)
        held = NO_EXPERTS
        if topology.num_ranks > 1:
            placement = place_experts(sets, counts, layer.load, topology, options)
            if replicas:
                held = replicate_experts(sets, counts, placement, topology, replicas, options)
        layers.append(
            LayerPlan(
                name=layer.name,
                num_experts=layer.num_experts,
                top_k=layer.top_k,
                placement=placement,
                replicas=held,
            )
        )
    return Plan(layers=tuple(layers), topology=topology)


def _steps(
    profile: CollaborationProfile, plan: Plan, cluster: Cluster, workload: Workload
) -> dict[str, StepTime]:
    """Of each dispatcher in order, then placed, then with the replicas that the plan has."""
    names = {"k_fold": "k_fold", "once": "zero_redundancy"}
    if cluster.is_nested:
        names["hierarchical"] = "hierarchical"
    steps = {
        name: predict_time(profile, None, cluster, workload, dispatcher=dispatcher)
        for name, dispatcher in names.items()
    }
    alone = tuple(replace(layer, replicas=NO_EXPERTS) for layer in plan.layers)
    plain = replace(plan, layers=alone)
    steps["placed"] = best_time(profile, plain, cluster, workload, chunks=(1,))
    if any(layer.replicas.size for layer in plan.layers):
        steps["replicas"] = best_time(profile, plan, cluster, workload, chunks=(1,))
    return steps


def _is_measured(plan: Plan, cluster: Cluster) -> bool:
    """Whether the sets under the plan's policies are those that there would be on these ranks."""
    is_of_lists = all(layer.policy in ("c2r", "top_k") for layer in plan.layers)
    return is_of_lists or plan.topology == cluster.topology


def some_layers(profile: CollaborationProfile, num_layers: int) -> CollaborationProfile:
    """Some of the layers, evenly chosen."""
    count = min(num_layers, profile.num_layers)
    chosen = np.linspace(0, profile.num_layers - 1, count).round().astype(int)
    return CollaborationProfile(
        layers=tuple(profile.layers[index] for index in chosen), provenance=profile.provenance
    )


def _halves(
    profile: CollaborationProfile, num_layers: int, seed: int
) -> tuple[CollaborationProfile, CollaborationProfile]:
    """Tokens of some layers to plan on, half of them at most, and the others to judge by."""
    builders = [IdProfileBuilder(profile.num_experts) for _ in range(2)]
    chosen = some_layers(profile, num_layers)
    rng = np.random.default_rng(seed)
    for index, layer in enumerate(chosen.layers):
        sets, counts = known_sets(index, layer, _SEVERAL)
        tokens = rng.permutation(np.repeat(np.arange(len(sets)), counts))
        cut = min(len(tokens) // 2, _MOST_PLANNED)
        for builder, part in zip(builders, (tokens[:cut], tokens[cut:]), strict=True):
            builder.update(index, sets[part])
    names = dict.fromkeys(range(len(chosen.layers)), "")
    first, second = (builder.build(names, profile.provenance) for builder in builders)
    return first, second


def of_all_layers(step: StepTime, num_layers: int) -> StepTime:
    """The step with so many MoE layers, those that it has taking turns."""
    layers = tuple(step.layers[index % len(step.layers)] for index in range(num_layers))
    return replace(step, layers=layers)
