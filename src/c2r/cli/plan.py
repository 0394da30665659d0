"""`c2r plan`: from a profile and a cluster to partner lists and a placement."""

from pathlib import Path
from typing import Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, progress_bar
from c2r.errors import InputError


def plan(
    profile: Annotated[Path, typer.Argument(help="Profile from `c2r profile` or `c2r import`.")],
    ranks: Annotated[int, typer.Option(help="Devices that the experts are spread over.")],
    nodes: Annotated[int, typer.Option(help="Machines that the ranks are on.")] = 1,
    top_t: Annotated[
        str | None,
        typer.Option(help="Partners per expert: one number, or one per layer: 8,8,6,4. [E/2]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same plan.")] = 0,
    objective: Annotated[
        str,
        typer.Option(help="Place by routing `sets`, or by `pairs` where sets are unknown."),
    ] = "sets",
    max_load: Annotated[
        float | None,
        typer.Option(help="Bound on the busiest rank's load over the mean, such as 1.1."),
    ] = None,
    inter_node_cost: Annotated[
        float,
        typer.Option(help="How many times slower the network between nodes is than within."),
    ] = 8.0,
    replicas: Annotated[
        int, typer.Option(help="Further experts that each rank holds a replica of.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Plan to write.")] = None,
    json: JsonOption = False,
) -> None:
    """Rank each expert's partners and place the experts so that tokens visit few ranks.

    Every rank gets the same number of experts (differing by one at most) and, with --replicas,
    replicas of further ones: a token takes the replica on a rank that it visits anyway.
    """
    from c2r.measuring import predict_traffic
    from c2r.planning import make_plan
    from c2r.profiling import CollaborationProfile

    if out is None and not json:
        raise InputError("where should the plan go? Give --out PLAN.safetensors, or --json")
    loaded = CollaborationProfile.load(profile)
    with progress_bar("planning, layers", loaded.num_layers) as advance:
        made = make_plan(
            loaded,
            num_ranks=ranks,
            num_nodes=nodes,
            top_t=_parse_top_t(top_t),
            seed=seed,
            objective=objective,
            max_load=max_load,
            inter_node_cost=inter_node_cost,
            replicas=replicas,
            on_layer=lambda _: advance(),
        )
    if out is not None:
        made.save(out)
    report = predict_traffic(loaded, made)
    if json:
        print_json(_document(made, report.to_json(), out))
    mean = report.mean
    note(
        f"{made.num_layers} layers on {ranks} ranks: {mean.copies_placed:.3f} copies per token "
        f"(contiguous {mean.copies_contiguous:.3f}, k-fold {mean.copies_k_fold:.3f}), "
        f"rank load max/mean {mean.rank_load_max_over_mean:.2f}"
        + (f"; wrote {out}" if out is not None else "")
    )


def _parse_top_t(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--top-t {text} is not a number, or numbers with commas between; try --top-t 8"
        ) from None
    return values[0] if len(values) == 1 else values


def _document(made: Any, traffic: dict[str, Any], out: Path | None) -> dict[str, Any]:
    layers = [
        {
            **predicted,
            "top_t": layer.top_t,
            "placement": layer.placement.tolist(),
            "replicas": layer.replicas.tolist(),
            "copies": predicted["copies_placed"],
        }
        for layer, predicted in zip(made.layers, traffic["layers"], strict=True)
    ]
    mean = {**traffic["mean"], "copies": traffic["mean"]["copies_placed"]}
    return {
        "out": None if out is None else str(out),
        "num_ranks": made.topology.num_ranks,
        "num_nodes": made.topology.num_nodes,
        "fingerprint": made.fingerprint,
        "layers": layers,
        "mean": mean,
    }
