"""`c2r estimate`: how long an MoE layer and a step would take on a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.clusters import (
    ClusterOption,
    PhaseOption,
    TokensOption,
    cluster_of,
    describe,
    workload_of,
)
from c2r.cli.console import JsonOption, note, print_json, print_table

if TYPE_CHECKING:
    from c2r.plans import Plan
    from c2r.prediction import Cluster, StepTime, Workload
    from c2r.profiling import CollaborationProfile


def estimate(
    profile: Annotated[Path, typer.Argument(help="Profile of the routing that will run.")],
    plan: Annotated[
        Path | None, typer.Option(help="Plan to compare with experts in order.")
    ] = None,
    cluster: ClusterOption = None,
    ranks: Annotated[int | None, typer.Option(help="Devices, where no cluster is named.")] = None,
    nodes: Annotated[int, typer.Option(help="Machines that the ranks are on.")] = 1,
    tokens_per_rank: TokensOption = 4096,
    phase: PhaseOption = "prefill",
    json: JsonOption = False,
) -> None:
    """Predict the time of an MoE layer and of a step, by dispatcher, with and without a plan.

    Every part is that of the busiest rank or link. The figures of clusters are from data sheets
    unless `c2r bench cluster` measured them. The routing is the profile's: to predict a policy,
    profile the model under it.
    """
    from c2r.plans import Plan
    from c2r.prediction import break_even_tokens
    from c2r.prediction.workload import UNKNOWN_SIZES
    from c2r.profiling import CollaborationProfile

    counted = CollaborationProfile.load(profile)
    planned = None if plan is None else Plan.load(plan)
    if cluster is None and ranks is None and planned is not None:
        ranks, nodes = planned.topology.num_ranks, planned.topology.num_nodes
    where = cluster_of(cluster, ranks, nodes)
    workload = workload_of(counted, tokens_per_rank, phase)
    before = _times(counted, None, where, workload)
    after = {} if planned is None else _times(counted, planned, where, workload)
    even = None
    if planned is not None:
        even = break_even_tokens(counted, planned, where, workload)
    if json:
        print_json(
            {
                **describe(where, workload),
                "contiguous": {name: step.to_json() for name, step in before.items()},
                "planned": {name: step.to_json() for name, step in after.items()},
                "break_even_tokens_per_rank": even,
            }
        )
        return
    if workload.sizes == UNKNOWN_SIZES:
        note("the profile does not tell the model's sizes: those of Qwen3-30B-A3B are taken")
    _show(before, after, f"{workload.tokens_per_rank:,} tokens a rank, {phase}, on {where.name}")
    print(f"{where.name}: {where.source}")
    if planned is not None:
        _conclude(before, after, even)


def _times(
    profile: "CollaborationProfile",
    plan: "Plan | None",
    cluster: "Cluster",
    workload: "Workload",
) -> "dict[str, StepTime]":
    """The step by dispatcher, as far as the cluster has several ranks, and nodes of several."""
    from c2r.prediction import DISPATCHERS, predict_time

    return {
        name: predict_time(profile, plan, cluster, workload, dispatcher=name)
        for name in DISPATCHERS
        if cluster.is_nested or name != "hierarchical"
    }


def _show(before: "dict[str, StepTime]", after: "dict[str, StepTime]", title: str) -> None:
    base = before["k_fold"].layer
    rows = [
        [
            name,
            placed,
            step.part("index"),
            step.part("exchange"),
            step.part("compute"),
            step.layer,
            f"{step.layer / base:.2f}",
            step.total,
            f"{100 * step.exchange_share:.0f} %",
        ]
        for placed, steps in (("in order", before), ("as planned", after))
        for name, step in steps.items()
    ]
    columns = ["dispatch", "experts", "index", "exchange", "compute", "layer", "of k-fold"]
    print_table(f"Milliseconds, predicted: {title}", [*columns, "step", "exchange of step"], rows)


def _conclude(
    before: "dict[str, StepTime]", after: "dict[str, StepTime]", even: int | None
) -> None:
    fastest = min(after.values(), key=lambda step: step.total)
    plain = min(before.values(), key=lambda step: step.total)
    change = 100 * (fastest.total / plain.total - 1)
    if change >= 0:
        note(
            f"the plan is {change:.1f} % SLOWER than experts in order ({fastest.total:.3f} against "
            f"{plain.total:.3f} ms a step); do not use it here, or plan for this cluster"
        )
        return
    where = "at no batch size tried" if even is None else f"from {even:,} tokens a rank"
    print(
        f"The plan saves {-change:.1f} % of a step ({plain.total:.3f} to {fastest.total:.3f} ms, "
        f"{fastest.dispatcher}), 1 % or more {where}. No plan can save more than the "
        f"{100 * plain.exchange_share:.0f} % that exchange takes."
    )
