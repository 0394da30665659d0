"""The model card of a folder that carries a plan: what the plan saves and costs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from c2r.adapters.huggingface.sources import is_hub_name
from c2r.errors import PlanMismatchError, one_line
from c2r.plans import Plan
from c2r.results import Measurement

CARD_FILE = "README.md"
_HEADER = "| | under the plan | plain top-k, same placement | experts in order |"


def model_card(
    plan: Plan, base_model: str | None = None, measurement: Measurement | None = None
) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        plan: that the card is about.
        base_model: a hub name or folder; None where it is not known.
        measurement: of the plan; without one, what a sweep measured, else what was predicted.

    Raises:
        PlanMismatchError: the measurement is of another plan.
    """
    if measurement is not None and measurement.plan_fingerprint != plan.fingerprint:
        raise PlanMismatchError(
            f"the measurement is of plan {measurement.plan_fingerprint}, this is "
            f"{plan.fingerprint}; measure this plan"
        )
    is_shared = base_model is not None and is_hub_name(base_model)
    data = ModelCardData(
        base_model=base_model if is_shared else None,
        library_name="c2r",
        tags=["c2r", "mixture-of-experts"],
    )
    lines = [f"---\n{data.to_yaml()}\n---", "", *_about(plan, base_model), ""]
    lines += [*_figures(plan, measurement), "", *_use()]
    return "\n".join(lines) + "\n"


def _about(plan: Plan, base_model: str | None) -> Iterator[str]:
    layer, topology = plan.layers[0], plan.topology
    name = base_model or _profile(plan).get("model") or "a Mixture-of-Experts model"
    policies = sorted({f"{each.policy} {each.strength:g}" for each in plan.layers})
    shown = policies[0] if len(policies) == 1 else f"{len(policies)} settings, one for each layer"
    yield f"# {one_line(Path(name).name)}, routed by a plan"
    yield ""
    yield (
        f"{plan.num_layers} layers of {layer.num_experts} experts, {layer.top_k} for each token, "
        f"placed on {topology.num_ranks} ranks ({topology.num_nodes} nodes). Policy: {shown}. "
        f"Plan {plan.fingerprint}, made by c2r."
    )


def _figures(plan: Plan, measurement: Measurement | None) -> Iterator[str]:
    origin = plan.provenance
    cluster = origin.get("cluster")
    yield "## What it saves and costs"
    yield ""
    if cluster:
        yield f"The experts are placed for the least time on the cluster {one_line(cluster)}."
        yield ""
    swept, predicted = origin.get("expected"), origin.get("predicted")
    if measurement is not None:
        yield from _measured(measurement)
        yield f"Measured on {measurement.num_tokens:,} predicted tokens."
    elif isinstance(swept, Mapping):
        found = Measurement.from_json(swept)
        yield from _measured(found)
        yield (
            f"Measured by a sweep on {found.num_tokens:,} predicted tokens, with the weights that "
            "were profiled."
        )
    elif isinstance(predicted, Mapping):
        yield from _predicted(plan, predicted)
    else:
        yield "Not measured: `c2r measure` tells loss, copies and load."


def _predicted(plan: Plan, figures: Mapping[str, Any]) -> Iterator[str]:
    num_tokens = plan.provenance.get("num_tokens", 0)
    yield "| plain top-k routing on this placement | |\n|---|---|"
    if "copies" in figures:
        yield f"| ranks that a token visits | {figures['copies']:.2f} |"
    yield f"| load of the busiest rank, over the mean | {figures['rank_load_max_over_mean']:.2f} |"
    yield ""
    yield (
        f"Predicted from a profile of {num_tokens:,} tokens{_texts(plan)}. What "
        "the policy saves and costs beside that was not measured: `c2r measure` tells it."
    )


def _measured(found: Measurement) -> Iterator[str]:
    plain = found.reference
    low, high = found.loss_increase_interval
    yield f"{_HEADER}\n|---|---|---|---|"
    loss = "" if plain is None else f"{plain.loss:.3f}"
    yield f"| loss, nats per token | {found.loss:.3f} | {loss} | |"
    yield (
        f"| loss increase (95 % interval) | {found.loss_increase:+.2%} ({low:+.2%} to {high:+.2%}) "
        "| | |"
    )
    copies = "" if plain is None else f"{plain.copies:.2f}"
    yield (
        f"| ranks that a token visits | {found.copies:.2f} | {copies} | "
        f"{found.copies_in_order:.2f} |"
    )
    load = "" if plain is None else f"{plain.rank_load_max_over_mean:.2f}"
    yield (
        f"| load of the busiest rank, over the mean | {found.rank_load_max_over_mean:.2f} | "
        f"{load} | |"
    )
    if found.layer_time is not None:
        time = "" if plain is None or plain.layer_time is None else f"{plain.layer_time:.3f}"
        yield f"| predicted ms of a layer | {found.layer_time:.3f} | {time} | |"
    yield ""


def _texts(plan: Plan) -> str:
    request = _profile(plan)
    texts = [one_line(entry["name"]) for entry in request.get("texts", ()) if "name" in entry]
    return f" of {', '.join(texts)}" if texts else ""


def _profile(plan: Plan) -> Mapping[str, Any]:
    profile = plan.provenance.get("profile")
    request = profile.get("request") if isinstance(profile, Mapping) else None
    return request if isinstance(request, Mapping) else {}


def _use() -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "```python\nimport c2r\n"
    yield 'model = c2r.from_pretrained("this/repository")  # under its plan\n```'
    yield ""
    yield "Loaded by other means, the model runs without the plan."
