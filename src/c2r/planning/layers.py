"""Plans layers, each by itself: so they may be planned side by side, with the same result."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from c2r.errors import InputError, PlanError
from c2r.planning.margin import load_margin
from c2r.planning.placement import PlacementOptions, place_experts, replicate_experts
from c2r.planning.placement.bottleneck import BottleneckCost
from c2r.planning.policies import PolicySetting
from c2r.plans import contiguous_placement
from c2r.plans.plan import LayerPlan
from c2r.plans.topology import ClusterTopology
from c2r.prediction import LayerTraffic, predict_layer
from c2r.prediction.cluster import Cluster
from c2r.prediction.shares import RankShares
from c2r.prediction.time import bottleneck_weights, measured_time
from c2r.prediction.workload import Workload
from c2r.profiling import LayerProfile
from c2r.types import Int

Sets = tuple[Int, Int]
"""Distinct routing sets `[sets, k]` and their counts `[sets]`."""
Text = tuple[Int, Int, Int]
"""The same, and the load `[E]` of the experts."""
Replicas = int | Literal["auto"]
Planned = tuple[LayerPlan, LayerTraffic | None]
"""The plan of a layer, and what it sends where the sets are known."""

_LEAST_SAVING = 0.01
"""Share of the layers' time that replicas must save to be held."""
_WORK_OF_THREADS = 20_000_000
"""Expert ids times k of all sets from which threads are used, chosen by hand: small arrays leave
the interpreter locked. Layers of 256 experts and 100,000 sets were 1.4 times as fast in two."""
_MAX_THREADS = 8  # numpy holds the interpreter between its calls: more threads wait for each other


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTask:
    """A layer to plan.

    Attributes:
        layer: what was counted.
        sets: of it; None where it has pairs only.
        texts: of the same layer in each kind of text, of which the worst counts; may be empty.
        setting: the policy.
        topology: the devices.
        objective: as `make_plan` takes it.
        options: of the search.
        replicas: of each rank.
        placement: `[E]` to keep; None to search for one.
    """

    layer: LayerProfile
    sets: Sets | None
    texts: tuple[Text, ...]
    setting: PolicySetting
    topology: ClusterTopology
    objective: str
    options: PlacementOptions
    replicas: int
    placement: Int | None = None

    @property
    def margin(self) -> float:
        """Kept to the bound on load, 0 where there is none."""
        bound = self.options.max_load
        if bound is None or self.sets is None or self.topology.num_ranks == 1:
            return 0.0
        return load_margin(self.layer, *self.sets, self.topology, bound)

    def plan(self) -> Planned:
        """The layer's plan and, where the sets are known, what it sends."""
        layer, setting = self.layer, self.setting
        placement = self._place()
        planned = LayerPlan(
            name=layer.name,
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            policy=setting.policy,
            strength=setting.strength,
            partners=setting.partners(layer, placement),
            placement=placement,
        )
        if self.replicas:
            planned = self._with_replicas(planned)
        if self.sets is None:
            return planned, None
        return planned, predict_layer(layer, planned, self.topology, self.sets)

    def _place(self) -> Int:
        layer, topology = self.layer, self.topology
        if self.placement is not None:
            return self.placement
        if topology.num_ranks == 1:
            return contiguous_placement(layer.num_experts, 1)
        if self.objective == "pairs":
            first, second = np.nonzero(np.triu(layer.coactivation, 1))
            pairs = np.stack([first, second], axis=1)
            counts = layer.coactivation[first, second]
            return place_experts(pairs, counts, layer.load, topology, self.options)
        pooled = known(self.sets, layer, 'give objective="pairs"')
        texts = self.texts or ((*pooled, layer.load),)
        options = replace(self.options, load_margin=self.margin, others=texts[1:])
        return place_experts(*texts[0], topology, options)

    def _with_replicas(self, planned: LayerPlan) -> LayerPlan:
        sets, counts = known(self.sets, self.layer, "plan without replicas")
        replicas = replicate_experts(
            sets, counts, planned.placement, self.topology, self.replicas, self.options
        )
        return replace(planned, replicas=replicas)

    def shares(self, planned: LayerPlan) -> list[RankShares]:
        """What comes to each rank, in each of the texts."""
        pooled = known(self.sets, self.layer, "plan without replicas")
        return [
            RankShares.of(planned.ranks_of(sets, self.topology), sets, counts, self.topology)
            for sets, counts, *_ in self.texts or (pooled,)
        ]


def known(sets: Sets | None, layer: LayerProfile, otherwise: str) -> Sets:
    """The sets. Raises `PlanError` where there are none."""
    if sets is None:
        raise PlanError(
            f"the profile holds pairs only, which do not tell the routing sets at "
            f"k = {layer.top_k}; {otherwise}, or profile the model itself"
        )
    return sets


def bottleneck_cost(
    layers: Sequence[LayerProfile],
    sets: Sequence[Sets | None],
    cluster: Cluster,
    workload: Workload,
) -> BottleneckCost:
    """What the busiest rank and node cost in a layer, by the dispatcher that is fastest there."""
    topology, dispatcher, shares = cluster.topology, "zero_redundancy", []
    for layer, found in zip(layers, sets, strict=True):
        experts, counts = known(found, layer, 'give objective="pairs"')
        if cluster.is_nested:
            ranks = contiguous_placement(layer.num_experts, topology.num_ranks)[experts]
            shares.append(RankShares.of(ranks, experts, counts, topology))
    if shares:
        dispatcher = measured_time(shares, cluster, workload).dispatcher
    load, visits, node_visits = bottleneck_weights(cluster, workload, dispatcher)
    return BottleneckCost(load=load, visits=visits, node_visits=node_visits)


def plan_layers(
    tasks: Sequence[LayerTask], num_threads: int | None, on_layer: Callable[[int], None] | None
) -> Iterator[Planned]:
    """Plans the layers, `num_threads` at a time, and gives them in order.

    An error or Ctrl-C ends it when the layers that are under way are done; no other is begun.
    None takes all cores, at most 8, or one where the layers are so small that threads would cost.
    Raises `InputError` for fewer than 1.
    """
    threads = _threads(tasks) if num_threads is None else num_threads
    if threads < 1:
        raise InputError(f"{threads} layers at a time; give at least 1 (num_threads, --jobs)")
    if threads == 1:
        for index, task in enumerate(tasks):
            yield task.plan()
            if on_layer is not None:
                on_layer(index)
        return
    pool = ThreadPoolExecutor(threads, "c2r-plan")
    try:
        futures = [pool.submit(task.plan) for task in tasks]
        for index, future in enumerate(futures):
            yield future.result()
            if on_layer is not None:
                on_layer(index)
    finally:
        pool.shutdown(cancel_futures=True)


def with_replicas_that_pay(
    tasks: Sequence[LayerTask],
    planned: Sequence[Planned],
    most: int,
    where: tuple[Cluster, Workload],
    run: Callable[[Sequence[LayerTask]], Sequence[Planned]],
    on_replicas: Callable[[int], None] | None = None,
) -> Sequence[Planned]:
    """The plans with as many replicas on every rank and in every layer, as engines want them.

    1, 2, 4, ... of them, until twice as many save less than 1 % more, or do not fit.

    Args:
        tasks: without replicas.
        planned: what they gave.
        most: replicas of a rank that fit its memory.
        where: where times are predicted.
        run: plans layers, as `plan_layers` does.
        on_replicas: called with each number before it is tried.
    """
    layers = [layer for layer, _ in planned]
    for layer in layers:
        most = min(most, layer.num_experts - int(np.bincount(layer.placement).max()))
    time, number = _time(tasks, planned, where), 1
    while number <= most:
        if on_replicas is not None:
            on_replicas(number)
        tried = run([_with_more(*each, number) for each in zip(tasks, planned, strict=True)])
        found = _time(tasks, tried, where)
        if found > (1 - _LEAST_SAVING) * time:
            break
        planned, time, number = tried, found, 2 * number
    return planned


def _with_more(task: LayerTask, planned: Planned, replicas: int) -> LayerTask:
    """The same layer with more replicas than it was planned with, which it keeps to begin with."""
    layer, _ = planned
    options = replace(task.options, replicas=layer.replicas)
    return replace(task, replicas=replicas, placement=layer.placement, options=options)


def _time(
    tasks: Sequence[LayerTask], planned: Sequence[Planned], where: tuple[Cluster, Workload]
) -> float:
    """Milliseconds of all layers, each in the worst of its texts."""
    return sum(
        max(measured_time([shares], *where).layer for shares in task.shares(layer))
        for task, (layer, _) in zip(tasks, planned, strict=True)
    )


def _threads(tasks: Sequence[LayerTask]) -> int:
    work = sum(task.sets[0].size * task.sets[0].shape[1] for task in tasks if task.sets is not None)
    if work < _WORK_OF_THREADS:
        return 1
    return min(os.cpu_count() or 1, _MAX_THREADS, len(tasks))
