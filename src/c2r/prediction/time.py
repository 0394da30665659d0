r"""How long an MoE layer takes, predicted from what its ranks are given.

A layer is through when its last rank is, so every part is that of the rank, or the link, with most
of it. With R ranks on N nodes, P = R / N ranks a node, T tokens a rank, and of all tokens the share
v_r that visits rank r and the k-fold share l_r (expert rows of r for a token), rank r gets

    from its node's other ranks   T v_r (P - 1) rows       sends  T * sum of v over those ranks
    from other nodes              T v_r (R - P) rows       sends  T * sum of v over those ranks

since a token lives on any rank with equal chance, whatever its experts; what stays on its rank is
not sent. An exchange takes, b bytes to a row,

    max over ranks and both directions of (latency + rows b / bandwidth), inside and between nodes,

the two at once, for their links are different ones; where the cluster has a rate for each pair of
ranks, the sum over peers of rows b / bandwidth to that peer. The parts of a layer, forward:

    dispatch, combine   an exchange each, of the same rows in opposite directions
    compute             the largest over ranks of max(2 rows w / rate, w_read d / memory bandwidth):
                        w parameters of an expert, w_read those of the experts that have any row
    reorder             rows on the rank, read and written once each: as sent, as received, as
                        the experts take and give them, over the memory bandwidth

In training exchanges and reordering come twice and products three times (backward: one for the
rows, one for the weights). With chunks an exchange takes latency and its share of the rows, the
device works for a launch and its share of compute and reordering, both at the same time: see
`pipeline_time`.

`k_fold` sends a row per expert: l_r in the place of v_r. `all_gather` sends every token to every
rank, and each rank's sums back: v_r = 1. `hierarchical` sends a token once to each node that it
visits, to the rank of the same place there, and then inside: first T u_n (N - 1) rows, u_n the
share that visits node n, then T v_r (R - N).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2r.errors import PlanMismatchError
from c2r.plans import Plan, load_max_over_mean
from c2r.prediction.cluster import Cluster
from c2r.prediction.links import seconds_by_link
from c2r.prediction.pipeline import pipeline_time
from c2r.prediction.rows import DISPATCHERS, rows_by_rank, visits_by_rank
from c2r.prediction.shares import RankShares, all_shares
from c2r.prediction.traffic import check_fit
from c2r.prediction.workload import Workload
from c2r.profiling import CollaborationProfile
from c2r.types import Float

CHUNKS = (1, 2, 4, 8)
"""Numbers of chunks that are tried where overlap is asked for."""

_BYTES_PER_SECOND = 1e9
_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTime:
    """Milliseconds of an MoE layer, in training of both passes; parts as if each were alone.

    Attributes:
        dispatch: rows on their way to the experts.
        combine: rows on their way back.
        compute: the routed experts of the busiest rank.
        reorder: rows of the busiest rank, read and written in another order: by the ranks that
            they go to, by the experts that take them, and back.
        launches: what is spent besides, growing with the chunks.
        latency: of the exchange of a chunk, in `dispatch` and `combine` for each.
        num_chunks: parts in which exchanges and compute overlap.
        passes: 2 in training: forward, and backward with twice the compute.
        busiest_rank: the rank that computes longest.
        busiest_link: what bounds the exchange: `"inside rank 3"` or `"between nodes, rank 3"`.
        even: `dispatch`, `combine` and `reorder`, were all ranks given alike: what the number of
            rows takes, whomever they go to.
        copies: distinct ranks that a token visits, its own counted.
        node_copies: distinct nodes that a token visits, its own counted.
        load: expert rows of the busiest rank over the mean.
    """

    dispatch: float
    combine: float
    compute: float
    reorder: float
    launches: float
    latency: float
    num_chunks: int
    passes: int
    busiest_rank: int
    busiest_link: str
    even: float
    copies: float
    node_copies: float
    load: float

    @property
    def exchange(self) -> float:
        """Milliseconds of both exchanges."""
        return self.dispatch + self.combine

    @property
    def total(self) -> float:
        """Milliseconds of the layer."""
        rows = self.dispatch / self.passes - self.num_chunks * self.latency
        shares = (1.0,) if self.passes == 1 else (1 / 3, 2 / 3)
        return sum(
            pipeline_time(
                self.num_chunks,
                rows,
                self.reorder / self.passes + self.compute * share,
                latency=self.latency,
                launch=self.launches / (self.passes * self.num_chunks),
            )
            for share in shares
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Milliseconds of a step of the model.

    Attributes:
        dispatcher: how rows travel.
        layers: of each MoE layer in the model's order.
        rest: everything else of the model: attention, dense layers, shared experts, head.
    """

    dispatcher: str
    layers: tuple[LayerTime, ...]
    rest: float

    @property
    def layer(self) -> float:
        """Mean milliseconds of an MoE layer."""
        return sum(layer.total for layer in self.layers) / len(self.layers)

    @property
    def total(self) -> float:
        """Milliseconds of the step."""
        return self.rest + sum(layer.total for layer in self.layers)

    @property
    def exchange_share(self) -> float:
        """Share of the step in which rows are exchanged and nothing else can run.

        A plan saves more only by what it takes off the busiest rank's products and reordering.
        """
        waiting = sum(
            layer.total - layer.reorder - layer.launches - layer.compute for layer in self.layers
        )
        return max(waiting, 0.0) / self.total

    @property
    def fixed_share(self) -> float:
        """Share of the step that is latency and launches: taken however few and short the rows."""
        fixed = sum(
            2 * layer.passes * layer.num_chunks * layer.latency + layer.launches
            for layer in self.layers
        )
        return min(fixed / self.total, 1.0)

    def part(self, name: str) -> float:
        """Mean over layers of an attribute of `LayerTime`, of a part milliseconds."""
        return sum(float(getattr(layer, name)) for layer in self.layers) / len(self.layers)

    def to_json(self) -> dict[str, Any]:
        """The step as JSON data, milliseconds; parts are means over layers."""
        parts = ("dispatch", "combine", "compute", "reorder", "launches")
        return {
            "dispatcher": self.dispatcher,
            "step": self.total,
            "layer": self.layer,
            "rest": self.rest,
            **{name: self.part(name) for name in parts},
            "exchange_share": self.exchange_share,
            "copies": self.part("copies"),
            "rank_load_max_over_mean": self.part("load"),
            "num_chunks": [layer.num_chunks for layer in self.layers],
            "busiest_link": self.layers[0].busiest_link,
            "busiest_rank": [layer.busiest_rank for layer in self.layers],
            "layers": [layer.total for layer in self.layers],
        }


def layer_time(
    shares: RankShares,
    cluster: Cluster,
    workload: Workload,
    dispatcher: str = "zero_redundancy",
    num_chunks: int = 1,
) -> LayerTime:
    """The time of a layer whose ranks are given `shares`; raises `InputError` as `rows_by_rank`."""
    where = cluster, workload, dispatcher
    seconds, latency, link = _exchange(shares, *where)
    even, _, _ = _exchange(shares.evened, *where)
    seconds, even = (
        workload.passes * (each + (num_chunks - 1) * latency) for each in (seconds, even)
    )
    compute = _compute(shares, cluster, workload)
    busiest = int(compute.argmax())
    return LayerTime(
        dispatch=1e3 * seconds,
        combine=1e3 * seconds,
        compute=1e3 * float(compute[busiest]),
        reorder=1e3 * _reorder(shares, *where),
        launches=1e3 * cluster.launch_microseconds * _SECONDS * num_chunks * workload.passes,
        latency=1e3 * latency,
        num_chunks=num_chunks,
        passes=workload.passes,
        busiest_rank=busiest,
        busiest_link=link,
        even=1e3 * (2 * even + _reorder(shares.evened, *where)),
        copies=float(shares.visits.sum()),
        node_copies=float(shares.node_visits.sum()),
        load=load_max_over_mean(shares.rows),
    )


def _exchange(
    shares: RankShares, cluster: Cluster, workload: Workload, dispatcher: str
) -> tuple[float, float, str]:
    """Seconds of one exchange, those that it takes empty, and the link that takes longest."""
    inside, between = rows_by_rank(shares, cluster.topology, dispatcher)
    if cluster.is_outer_shared:
        _, between = rows_by_rank(shares.node_means, cluster.topology, dispatcher)
    sent = workload.tokens_per_rank * workload.row_bytes
    inside_seconds = inside * sent / (cluster.inner_gigabytes * _BYTES_PER_SECOND)
    between_seconds = between * sent / (cluster.outer_gigabytes * _BYTES_PER_SECOND)
    if cluster.link_gigabytes:
        inside_seconds, between_seconds = seconds_by_link(
            visits_by_rank(shares, dispatcher),
            shares.node_visits,
            cluster,
            sent,
            dispatcher == "hierarchical",
        )
    hops = {}
    if cluster.topology.ranks_per_node > 1:
        hops["inside"] = (inside_seconds, cluster.inner_microseconds * _SECONDS)
    if cluster.num_nodes > 1:
        hops["between nodes"] = (between_seconds, cluster.outer_microseconds * _SECONDS)
    if not hops:
        return 0.0, 0.0, "none"
    longest = max(hops, key=lambda hop: hops[hop][0].max() + hops[hop][1])
    counted = list(hops.values()) if dispatcher == "hierarchical" else [hops[longest]]
    latency = sum(empty for _, empty in counted)
    seconds = latency + sum(float(rows.max()) for rows, _ in counted)
    return seconds, latency, f"{longest}, rank {hops[longest][0].argmax()}"


def _compute(shares: RankShares, cluster: Cluster, workload: Workload) -> Float:
    """`[ranks]` seconds of the routed experts."""
    sizes, batch = workload.sizes, workload.tokens_per_rank * len(shares.rows)
    flops = 2.0 * sizes.expert_parameters * shares.rows * batch
    # An expert's weights are read where any token of the batch chose it.
    is_read = 0.0
    if shares.expert_chances is not None:
        is_read = (1.0 - np.exp(-shares.expert_chances * batch)).sum(1)
    weight_bytes = is_read * sizes.expert_parameters * workload.value_bytes
    products = flops / (cluster.teraflops * 1e12)
    reading = weight_bytes / (cluster.memory_gigabytes_per_second * _BYTES_PER_SECOND)
    seconds: Float = workload.products * np.maximum(products, reading)
    return seconds


def _reorder(shares: RankShares, cluster: Cluster, workload: Workload, dispatcher: str) -> float:
    """Seconds in which the rank with most rows reads and writes them in another order."""
    visits = visits_by_rank(shares, dispatcher)
    sent = visits.sum() + (shares.node_visits.sum() if dispatcher == "hierarchical" else 0.0)
    rows = workload.tokens_per_rank * (sent + len(visits) * (visits + 2 * shares.rows))
    copied = 2 * 2 * float(rows.max()) * workload.row_bytes  # there and back, read and written
    rate = cluster.memory_gigabytes_per_second * _BYTES_PER_SECOND
    return workload.passes * copied / rate


def rest_time(cluster: Cluster, workload: Workload) -> float:
    """Milliseconds of a step outside the routed experts.

    Every rank computes its own tokens with all dense weights. Attention's products of tokens with
    tokens are left out: they depend on the length of the context.
    """
    sizes = workload.sizes
    parameters = sizes.dense_parameters + sizes.num_moe_layers * sizes.shared_parameters
    flops = 2.0 * parameters * workload.tokens_per_rank / (cluster.teraflops * 1e12)
    reading = parameters * workload.value_bytes
    reading /= cluster.memory_gigabytes_per_second * _BYTES_PER_SECOND
    return 1e3 * workload.products * max(flops, reading)


def predict_time(
    profile: CollaborationProfile,
    plan: Plan | None,
    cluster: Cluster,
    workload: Workload,
    *,
    dispatcher: str = "zero_redundancy",
    num_chunks: int = 1,
) -> StepTime:
    """The step of a model whose tokens route as in `profile`.

    Args:
        profile: the routing that will run; that of the plan's policy where it is known.
        plan: who computes which expert; None for experts in the order of their ids.
        cluster: where it runs.
        workload: what runs.
        dispatcher: one of `DISPATCHERS`.
        num_chunks: parts in which exchanges and compute overlap.

    Raises:
        PlanMismatchError: plan and cluster have other ranks or nodes, or the plan is for a model
            with other layers.
        InputError: as `predict_traffic`, or the dispatcher is unknown.
    """
    if plan is not None:
        check_ranks(profile, plan, cluster)
    shares = all_shares(profile, plan, cluster.topology)
    return step_time(shares, cluster, workload, dispatcher, num_chunks)


def check_ranks(profile: CollaborationProfile, plan: Plan, cluster: Cluster) -> None:
    """Raises `PlanMismatchError` as `predict_time`."""
    check_fit(profile, plan)
    topology = cluster.topology
    if plan.topology != topology:
        raise PlanMismatchError(
            f"the plan is for {plan.topology.num_ranks} ranks on {plan.topology.num_nodes} "
            f"nodes, the cluster {cluster.name} has {topology.num_ranks} on "
            f"{topology.num_nodes}; plan for that cluster, or name another"
        )


def measured_time(shares: Sequence[RankShares], cluster: Cluster, workload: Workload) -> StepTime:
    """The least time over dispatchers of a step whose layers were measured to have these shares."""
    steps = (step_time(shares, cluster, workload, name) for name in _dispatchers(cluster))
    return min(steps, key=lambda step: step.total)


def steps_by_dispatcher(
    shares: Sequence[RankShares], cluster: Cluster, workload: Workload
) -> dict[str, StepTime]:
    """The step by each of `DISPATCHERS`; `hierarchical` only where it is another one."""
    return {
        name: step_time(shares, cluster, workload, name)
        for name in DISPATCHERS
        if cluster.is_nested or name != "hierarchical"
    }


def baseline(steps: Mapping[str, StepTime]) -> StepTime:
    """Of the steps by dispatcher the one that savings and ratios are told over.

    The fastest that never sends more rows than another: once per rank, or on nodes of several ranks
    once per node, then per rank.
    """
    never_more = (steps[name] for name in ("zero_redundancy", "hierarchical") if name in steps)
    return min(never_more, key=lambda step: step.total)


def step_time(
    shares: Sequence[RankShares],
    cluster: Cluster,
    workload: Workload,
    dispatcher: str,
    num_chunks: int = 1,
) -> StepTime:
    """The step of a model whose layers have these shares. Raises `InputError` as `layer_time`."""
    layers = (layer_time(layer, cluster, workload, dispatcher, num_chunks) for layer in shares)
    return StepTime(dispatcher=dispatcher, layers=tuple(layers), rest=rest_time(cluster, workload))


def _dispatchers(cluster: Cluster) -> tuple[str, ...]:
    """Those that never send more rows than another, where they differ."""
    return ("zero_redundancy", "hierarchical") if cluster.is_nested else ("zero_redundancy",)


def best_time(
    profile: CollaborationProfile,
    plan: Plan | None,
    cluster: Cluster,
    workload: Workload,
    chunks: Sequence[int] = CHUNKS,
    dispatchers: Sequence[str] | None = None,
) -> StepTime:
    """The least predicted time over dispatchers and numbers of chunks; arguments as `predict_time`.

    Unless `dispatchers` are named, `k_fold` and `all_gather` are not tried: once per rank never
    sends more rows.
    """
    tried = (
        predict_time(profile, plan, cluster, workload, dispatcher=name, num_chunks=number)
        for name in dispatchers or _dispatchers(cluster)
        for number in chunks
    )
    return min(tried, key=lambda step: step.total)


def bottleneck_weights(
    cluster: Cluster, workload: Workload, dispatcher: str = "zero_redundancy"
) -> tuple[float, float, float]:
    """Seconds of a layer for an expert row per token, a visit and a visit of a node.

    Of the busiest rank and node each: the slopes of `layer_time`, for a search that tries many
    placements. Where reading weights takes longer than the products, load counts for its
    reordering only.
    """
    sizes, num_ranks = workload.sizes, cluster.num_ranks
    per_node, tokens = cluster.topology.ranks_per_node, workload.tokens_per_rank
    memory = cluster.memory_gigabytes_per_second * _BYTES_PER_SECOND
    batch = tokens * num_ranks
    products = workload.products * 2.0 * sizes.expert_parameters * batch
    reorder = 4 * workload.passes * batch * workload.row_bytes / memory
    load = 2 * reorder
    reading = sizes.expert_parameters * workload.value_bytes / memory
    if products / (cluster.teraflops * 1e12) > workload.products * reading:
        load += products / (cluster.teraflops * 1e12)
    rows = 2 * workload.passes * tokens * workload.row_bytes
    inside = rows / (cluster.inner_gigabytes * _BYTES_PER_SECOND)
    between = rows / (cluster.outer_gigabytes * _BYTES_PER_SECOND)
    if dispatcher == "hierarchical":
        return (
            load,
            reorder + inside * (num_ranks - cluster.num_nodes),
            between * (cluster.num_nodes - 1),
        )
    slower = max(inside * (per_node - 1), between * (num_ranks - per_node))
    return load, reorder + slower, 0.0


def milliseconds(value: float) -> str:
    """A time in three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
