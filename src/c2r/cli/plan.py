"""`c2r plan`: from a profile and a cluster to a routing policy and a placement."""

from pathlib import Path
from typing import Annotated, Any

import typer

from c2r.cli.console import JsonOption, check_output, note, print_json, progress_bar
from c2r.cli.flags import naming_flags
from c2r.errors import InputError
from c2r.policy_names import STRENGTH_NAMES

_POLICIES = tuple(STRENGTH_NAMES)


def plan(
    profile: Annotated[Path, typer.Argument(help="Profile from `c2r profile` or `c2r import`.")],
    ranks: Annotated[int, typer.Option(help="Devices that the experts are spread over.")],
    nodes: Annotated[int, typer.Option(help="Machines that the ranks are on.")] = 1,
    top_t: Annotated[
        str | None,
        typer.Option(help="Partners per expert: one number, or one per layer: 8,8,6,4. [E/2]"),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Routing policy: " + ", ".join(_POLICIES) + ". [c2r]"),
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(help="The policy's T, m, eps or price: one number, or one per layer."),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(help="Curve from `c2r sweep` to pick the policy and strength from."),
    ] = None,
    max_loss_increase: Annotated[
        float | None,
        typer.Option(help="With --sweep: fewest copies within this loss, 0.003 for +0.3 %."),
    ] = None,
    copies: Annotated[
        float | None, typer.Option(help="With --sweep: least loss within these copies per token.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same plan.")] = 0,
    objective: Annotated[
        str,
        typer.Option(help="Place by routing `sets`, or by `pairs` where sets are unknown."),
    ] = "sets",
    max_load: Annotated[
        float | None,
        typer.Option(
            help="Bound on the busiest rank's load over the mean, such as 1.1; with --sweep on "
            "the load that was measured."
        ),
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
    """Place the experts so that tokens visit few ranks, and choose how routing is constrained.

    Every rank gets the same number of experts (differing by one at most) and, with --replicas,
    replicas of further ones: a token takes the replica on a rank that it visits anyway. The policy
    is the one named, or with --sweep the measured one that meets a target.
    """
    from c2r.planning import make_plan
    from c2r.plans import ClusterTopology
    from c2r.prediction import TrafficReport, predict_traffic
    from c2r.profiling import CollaborationProfile

    if out is None and not json:
        raise InputError("where should the plan go? Give --out PLAN.safetensors, or --json")
    check_output(out, profile, sweep)
    loaded = CollaborationProfile.load(profile)
    target = {"max_loss_increase": max_loss_increase, "copies": copies}
    reports: list[TrafficReport] = []
    _check_options(sweep, target, (policy, strength, top_t, replicas or None))
    if sweep is not None:
        topology = ClusterTopology(num_ranks=ranks, num_nodes=nodes)
        made = _plan_by_target(loaded, sweep, topology, {**target, "max_load": max_load})
    else:
        with (
            naming_flags(objective="--objective"),
            progress_bar("planning, layers", loaded.num_layers) as advance,
        ):
            made = make_plan(
                loaded,
                num_ranks=ranks,
                num_nodes=nodes,
                top_t=_parse_numbers("--top-t", top_t),
                policy=policy or "c2r",
                strength=_parse_numbers("--strength", strength),
                seed=seed,
                objective=objective,
                max_load=max_load,
                inter_node_cost=inter_node_cost,
                replicas=replicas,
                on_layer=lambda _: advance(),
                on_traffic=reports.append,
            )
    if out is not None:
        made.save(out)
    report = reports[0] if reports else predict_traffic(loaded, made)
    if json:
        print_json(_document(made, report.to_json(), out))
    mean = report.mean
    note(
        f"{made.num_layers} layers on {ranks} ranks: {mean.copies_placed:.3f} copies per token "
        f"(contiguous {mean.copies_contiguous:.3f}, k-fold {mean.copies_k_fold:.3f}), "
        f"rank load max/mean {mean.rank_load_max_over_mean:.2f}"
        + (f"; wrote {out}" if out is not None else "")
    )


def _check_options(
    sweep: Path | None, target: dict[str, float | None], choices: tuple[object, ...]
) -> None:
    asked = [value for value in target.values() if value is not None]
    if sweep is None and asked:
        raise InputError(
            "--max-loss-increase and --copies pick from a measured curve; run `c2r sweep MODEL "
            "--ranks R --out sweep.json` and give --sweep sweep.json"
        )
    if sweep is not None and not asked:
        raise InputError("--sweep picks by a target; give --max-loss-increase or --copies")
    if sweep is not None and any(choice is not None for choice in choices):
        raise InputError(
            "--sweep picks a plan that was measured; leave out --policy, --strength, --top-t and "
            "--replicas"
        )


def _plan_by_target(
    profile: Any, sweep: Path, topology: Any, target: dict[str, float | None]
) -> Any:
    from c2r.sweeps import Target, plan_from_sweep, read_sweep

    made = plan_from_sweep(read_sweep(sweep), profile, topology, Target(**target))
    expected = made.provenance["expected"]
    note(
        f"picked {expected['policy']} {expected['strength']}: "
        f"{100 * expected['loss_increase']:+.2f} % loss, {expected['copies']:.3f} copies per "
        "token were measured"
    )
    return made


def _parse_numbers(option: str, text: str | None) -> Any:
    """One number, or several with commas between."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} {text} is not a number, or numbers with commas between; try {option} 8"
        ) from None
    return values[0] if len(values) == 1 else values


def _document(made: Any, traffic: dict[str, Any], out: Path | None) -> dict[str, Any]:
    layers = [
        {
            **predicted,
            "policy": layer.policy,
            "strength": layer.strength,
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
        "expected": made.provenance.get("expected"),
    }
