"""`c2r inspect`: what a profile or plan file holds."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_heat_map, print_json, print_table
from c2r.cli.runs import is_running
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.profiling import CollaborationProfile

_UNFINISHED = {
    True: "this profile is still being counted; it is written every minute",
    False: "this profile was interrupted; run the same `c2r profile` again to resume it",
    None: "this profile is still being counted, or was interrupted; then run the same `c2r "
    "profile` again to resume it",
}
"""What is told of an unfinished profile, by whether a command is at work on it."""


def inspect(
    file: Annotated[Path, typer.Argument(help="A profile or plan file.")],
    layer: Annotated[int, typer.Option(help="Layer whose collaboration is drawn.")] = 0,
    json: JsonOption = False,
) -> None:
    """Show what a profile or plan file holds.

    Of a profile, per layer: effective collaborators (exp of the entropy of an expert's partner
    distribution: 1 is one fixed partner, E-1 everyone alike), that entropy normalised, the share
    of the top partner, and the experts' load. Of a plan: lists and placement.
    """
    from c2r.artifacts import read_artifact
    from c2r.profiling import CollaborationProfile

    if read_artifact(file).kind == "plan":
        document = _describe_plan(file)
        if not json:
            _show_plan(document)
    else:
        profile = CollaborationProfile.load(file)
        if not 0 <= layer < profile.num_layers:
            raise InputError(f"--layer {layer} is none of 0 to {profile.num_layers - 1}")
        document = _describe_profile(profile)
        document["is_running"] = False if document["complete"] else is_running(file)
        if not json:
            _show_profile(document)
            _draw_profile(profile, layer)
    if json:
        print_json(document)


def _describe_profile(profile: "CollaborationProfile") -> dict[str, Any]:
    from c2r.profiling import mean_metrics, measure_collaboration

    metrics = [measure_collaboration(layer) for layer in profile.layers]
    return {
        "kind": "profile",
        "num_layers": profile.num_layers,
        "num_experts": profile.num_experts,
        "top_k": profile.top_k,
        "num_tokens": profile.num_tokens,
        "complete": profile.provenance.get("complete", True),
        "layers": [
            {
                "layer": index,
                "name": layer.name,
                "num_experts": layer.num_experts,
                "top_k": layer.top_k,
                "num_sets": None if layer.sets is None else len(layer.sets.distinct()[0]),
                "sets_exact": None if layer.sets is None else layer.sets.is_exact,
                "sets_sample_size": None if layer.sets is None else layer.sets.sample_size,
                **asdict(metric),
            }
            for index, (layer, metric) in enumerate(zip(profile.layers, metrics, strict=True))
        ],
        "mean": asdict(mean_metrics(metrics)),
        "provenance": dict(profile.provenance),
    }


def _show_profile(document: dict[str, Any]) -> None:
    columns = {
        "effective_collaborators": "effective collaborators",
        "normalized_entropy": "normalised entropy",
        "top_partner_share": "top partner's share",
        "load_max_over_mean": "expert load max/mean",
        "load_cv": "expert load cv",
    }
    rows = [[layer["layer"], *(layer[key] for key in columns)] for layer in document["layers"]]
    rows.append(["mean", *(document["mean"][key] for key in columns)])
    title = (
        f"{document['num_layers']} layers, {document['num_experts']} experts, "
        f"k = {document['top_k']}, {document['num_tokens']:,} tokens"
    )
    print_table(title, ["layer", *columns.values()], rows)
    if not document["complete"]:
        note(_UNFINISHED[document["is_running"]])


def _draw_profile(profile: "CollaborationProfile", index: int) -> None:
    rows = [
        layer.load.tolist() + [0] * (profile.num_experts - layer.num_experts)
        for layer in profile.layers
    ]
    names = [f"layer {number}" for number in range(profile.num_layers)]
    print_heat_map("Tokens of each expert", names, rows, "tokens")
    layer = profile.layers[index]
    names = [f"expert {expert}" for expert in range(layer.num_experts)]
    title = f"Tokens that chose both experts, layer {index}"
    print_heat_map(title, names, layer.coactivation.tolist(), "tokens")


def _describe_plan(file: Path) -> dict[str, Any]:
    from c2r.plans import Plan

    plan = Plan.load(file)
    return {
        "kind": "plan",
        "num_ranks": plan.topology.num_ranks,
        "num_nodes": plan.topology.num_nodes,
        "num_layers": plan.num_layers,
        "plan_fingerprint": plan.fingerprint,
        "layers": [
            {
                "layer": index,
                "name": layer.name,
                "policy": layer.policy,
                "strength": layer.strength,
                "top_t": layer.top_t,
                "partners": layer.partners.tolist(),
                "placement": layer.placement.tolist(),
                "replicas": layer.replicas.tolist(),
            }
            for index, layer in enumerate(plan.layers)
        ],
        "provenance": dict(plan.provenance),
    }


def _show_plan(document: dict[str, Any]) -> None:
    rows = []
    for layer in document["layers"]:
        ranks: list[list[str]] = [[] for _ in range(document["num_ranks"])]
        for expert, rank in enumerate(layer["placement"]):
            ranks[rank].append(str(expert))
        for rank, replicas in enumerate(layer["replicas"]):
            ranks[rank] += ["+", *map(str, replicas)]
        experts = " | ".join(map(" ".join, ranks))
        rows.append([layer["layer"], layer["policy"], f"{layer['strength']:g}", experts])
    title = f"{document['num_ranks']} ranks on {document['num_nodes']} node(s)"
    columns = ["layer", "policy", "strength", "experts of each rank (+ replicas)"]
    print_table(title, columns, rows)
