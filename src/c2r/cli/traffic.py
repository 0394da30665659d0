"""`c2r traffic`: what a plan would send, predicted from a profile."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.clusters import (
    PhaseOption,
    PlannedClusterOption,
    TokensOption,
    cluster_for,
    describe,
    place_of,
    workload_of,
)
from c2r.cli.console import JsonOption, print_heat_map, print_json, print_table, print_text
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import ClusterTopology, Plan
    from c2r.profiling import CollaborationProfile


def traffic(
    profile: Annotated[Path, typer.Argument(help="Profile of the routing that will run.")],
    plan_file: Annotated[
        Path | None,
        typer.Argument(metavar="PLAN", help="Plan whose placement is predicted; or --plan."),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="The same, by its name.")] = None,
    hidden_size: Annotated[
        int | None, typer.Option(help="Hidden size of the model, to add bytes per token.")
    ] = None,
    dtype_bytes: Annotated[int, typer.Option(help="Bytes per activation value.")] = 2,
    cluster: PlannedClusterOption = None,
    tokens_per_rank: TokensOption = None,
    phase: PhaseOption = "prefill",
    json: JsonOption = False,
) -> None:
    """Predict copies per token and time, layer by layer.

    Experts are in the order of their ids, and placed as planned. A token's row is sent once for
    each of its k experts, or once to each rank that holds any of them; its own rank counts. The
    routing is the profile's, without the plan's policy: to see a constrained model's traffic and
    time, profile the folder that `c2r apply` wrote.
    """
    from c2r.plans import Plan
    from c2r.prediction import bytes_per_token, predict_traffic
    from c2r.profiling import CollaborationProfile

    if (plan_file is None) == (plan is None):
        raise InputError("which plan? Give one, after the profile or as --plan PLAN")
    counted, placed = CollaborationProfile.load(profile), Plan.load(plan_file or plan or "")
    document = predict_traffic(counted, placed).to_json()
    document["rows_to_ranks"] = {
        "in_order": _rows_to_ranks(counted, None, placed.topology),
        "placed": _rows_to_ranks(counted, placed, placed.topology),
    }
    document["time"] = _add_times(document, counted, placed, cluster, tokens_per_rank, phase)
    columns = {
        "copies_once_per_expert": "sent once per expert",
        "copies_in_order": "once per rank, in order",
        "copies_placed": "once per rank, placed",
        "remote_copies_placed": "of them to other ranks",
        "rank_load_max_over_mean": "rank load, placed",
    }
    if document["num_nodes"] > 1:
        columns["node_copies_in_order"] = "nodes visited, in order"
        columns["node_copies_placed"] = "nodes visited, placed"
    columns |= {"milliseconds_in_order": "ms in order", "milliseconds_placed": "ms placed"}
    if hidden_size is not None:
        columns["bytes_per_token"] = "bytes per token each way"
        for row in (*document["layers"], document["mean"]):
            row["bytes_per_token"] = bytes_per_token(
                row["remote_copies_placed"], hidden_size, dtype_bytes
            )
    if json:
        print_json(document)
        return
    rows = [[row["layer"], *(row[key] for key in columns)] for row in document["layers"]]
    rows.append(["mean", *(document["mean"][key] for key in columns)])
    title = f"Copies per token on {document['num_ranks']} ranks"
    print_table(title, ["layer", *columns.values()], rows)
    print_text(_said(document["time"], placed))
    if document["time"]["note"]:
        print_text(document["time"]["note"])
    rows_to = document["rows_to_ranks"]
    names, values = ("in order", "placed"), (rows_to["in_order"], rows_to["placed"])
    print_heat_map("Rows of a token to each rank", names, values, "rows")


def _add_times(
    document: dict[str, Any],
    profile: "CollaborationProfile",
    plan: "Plan",
    cluster: str | None,
    tokens_per_rank: int | None,
    phase: str,
) -> dict[str, Any]:
    """Adds the milliseconds of every layer to its row; gives both steps as JSON data."""
    from c2r.prediction import best_time
    from c2r.prediction.worth import smallness

    where = cluster_for(cluster, plan)
    workload = workload_of(profile, tokens_per_rank, phase)
    steps = [best_time(profile, tried, where, workload, chunks=(1,)) for tried in (None, plan)]
    for name, step in zip(("in_order", "placed"), steps, strict=True):
        for row, layer in zip(document["layers"], step.layers, strict=True):
            row[f"milliseconds_{name}"] = layer.total
        document["mean"][f"milliseconds_{name}"] = step.layer
    before, after = (step.to_json() for step in steps)
    note = smallness(steps[0], workload)
    return {**describe(where, workload), "in_order": before, "planned": after, "note": note}


def _said(time: dict[str, Any], plan: "Plan") -> str:
    """What the times are of, and the step."""
    from c2r.prediction.rows import dispatch_words

    before, after = time["in_order"], time["planned"]
    policies = sorted({layer.policy for layer in plan.layers} - {"top_k"})
    of_plan = f", not of the plan's policy ({', '.join(policies)})" if policies else ""
    workload = time["workload"]
    return (
        "rank load: expert rows of the busiest rank over the mean. ms: a layer, predicted, a token "
        f"sent {dispatch_words(before['dispatcher'], after['dispatcher'])}, "
        f"for {workload['tokens_per_rank']:,} "
        f"tokens a rank ({workload['phase']}) on {place_of(time)}, under the profile's "
        f"routing{of_plan}. A step: {before['step']:.3f} to {after['step']:.3f} ms."
    )


def _rows_to_ranks(
    profile: "CollaborationProfile", plan: "Plan | None", topology: "ClusterTopology"
) -> list[float]:
    """Rows of a token to each rank, mean over layers."""
    from c2r.prediction.shares import all_shares

    layers = [layer.visits for layer in all_shares(profile, plan, topology)]
    return [float(sum(rank) / len(layers)) for rank in zip(*layers, strict=True)]
