"""The cluster and the workload that commands name."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import Plan
    from c2r.prediction import Cluster, ModelSizes, StepTime, Workload
    from c2r.profiling import CollaborationProfile

ClusterOption = Annotated[
    str | None,
    typer.Option(
        help="Where it will run: h100-8, h100-8x2 (2 nodes of 8), h100-8x4, h200-8, h200-8x2, "
        "a100-8, gb200-nvl72, hosts-4-10g (4 hosts, 10 Gbit/s), hosts-4-100g, emulated-4, or a "
        "YAML file; `c2r clusters` has their figures.",
        show_default="H100s, as many as --ranks says",
    ),
]
PlannedClusterOption = Annotated[
    str | None,
    typer.Option(
        help="Where times are predicted: h100-8 and so on (`c2r clusters` lists them), or a YAML "
        "file.",
        show_default="that of the plan, else H100s, as many as the plan has ranks",
    ),
]
RanksOption = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        help="Devices that the experts are spread over, in place of --cluster, which has its own.",
    ),
]
NodesOption = Annotated[
    int | None,
    typer.Option("--nodes", help="Machines that --ranks are on.", show_default="1"),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-rank",
        min=1,
        help="Tokens of each rank in a step.",
        show_default="4096; with --phase decode 128",
    ),
]
PhaseOption = Annotated[str, typer.Option(help="training, prefill or decode.")]


PARTS = (
    "layer: an MoE layer. exchange: rows to their experts and back. reorder: rows of the busiest "
    "rank, read and written in the order in which they are sent, computed and summed."
)
"""What the columns of a table of steps are."""
ENGINES_SEND = (
    "vLLM's default (allgather_reducescatter) sends to all ranks; DeepEP, as vLLM's "
    "deepep_high_throughput and SGLang's normal mode call it, once per node, then per rank (on one "
    "node once per rank), and in its low-latency mode once per expert."
)
"""Which row of a table an engine is."""


def baseline_is(step: "StepTime") -> str:
    """What a table of steps calls the baseline."""
    from c2r.prediction.rows import DISPATCH_WORDS

    sent = DISPATCH_WORDS[step.dispatcher]
    return f"baseline: experts in the order of their ids, a token sent {sent}."


def cluster_of(name: str | None, ranks: int | None, nodes: int | None) -> "Cluster":
    """The cluster named; else as many ranks and nodes of the default kind.

    Raises `InputError` where neither is given, or both and they differ.
    """
    from c2r.prediction.cluster import default_cluster, find_cluster

    if name is None:
        if ranks is None:
            raise InputError("how many devices? Give --ranks, or --cluster (such as h100-8)")
        return default_cluster(ranks, nodes or 1)
    found = find_cluster(name)
    asked = ranks or found.num_ranks, nodes or found.num_nodes
    if asked != (found.num_ranks, found.num_nodes):
        raise InputError(
            f"--cluster {name} has {found.num_ranks} ranks on {found.num_nodes} nodes, not "
            f"{asked[0]} on {asked[1]}; leave out --ranks and --nodes"
        )
    return found


def cluster_for(name: str | None, plan: "Plan") -> "Cluster":
    """The cluster named, which has the ranks of the plan; else the one that it was made for.

    Without either, as many ranks of the default kind. Raises `InputError` where the one named has
    other ranks or nodes, or as `planned_cluster`.
    """
    from c2r.prediction.cluster import default_cluster, find_cluster, planned_cluster

    topology = plan.topology
    if name is None:
        made_for = planned_cluster(plan)
        return made_for or default_cluster(topology.num_ranks, topology.num_nodes)
    found = find_cluster(name)
    if found.topology != topology:
        raise InputError(
            f"--cluster {name} has {found.num_ranks} ranks on {found.num_nodes} nodes, the plan is "
            f"for {topology.num_ranks} on {topology.num_nodes}; plan for that cluster"
        )
    return found


def workload_of(
    profile: "CollaborationProfile", tokens_per_rank: int | None, phase: str
) -> "Workload":
    """The tokens of a step of the model that was profiled. Errors as `workload_with`."""
    from c2r.prediction import Workload

    return workload_with(Workload.of(profile).sizes, tokens_per_rank, phase)


def workload_with(sizes: "ModelSizes", tokens_per_rank: int | None, phase: str) -> "Workload":
    """The tokens of a step. Raises `InputError` for an unknown phase."""
    from c2r.prediction import Phase, Workload

    tokens = tokens_for(tokens_per_rank, phase)
    return Workload(sizes=sizes, tokens_per_rank=tokens, phase=Phase(phase))


def tokens_for(tokens_per_rank: int | None, phase: str) -> int:
    """The tokens asked for, else those that are usual. Raises `InputError` for an unknown phase."""
    from c2r.prediction import Phase

    if phase not in list(Phase):
        raise InputError(f"--phase {phase} is unknown; choose {', '.join(Phase)}")
    return tokens_per_rank or Phase(phase).usual_tokens


def place_of(described: dict[str, Any]) -> str:
    """Name and size of the cluster in what `describe` gave."""
    from c2r.prediction import Cluster

    return Cluster(**described["cluster"]).place


def describe(cluster: "Cluster", workload: "Workload") -> dict[str, Any]:
    """Cluster and workload as JSON data."""
    from dataclasses import asdict

    return {
        "cluster": asdict(cluster),
        "workload": {
            "sizes": workload.sizes.to_json(),
            "tokens_per_rank": workload.tokens_per_rank,
            "phase": str(workload.phase),
            "value_bytes": workload.value_bytes,
        },
    }
