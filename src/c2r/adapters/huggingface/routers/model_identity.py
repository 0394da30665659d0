"""What identifies a model to a plan, and the check that a plan was made for it."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from c2r.adapters.digests import structure_digest, weights_digest
from c2r.adapters.huggingface.models import model_type
from c2r.adapters.huggingface.routers.sites import RouterSite
from c2r.adapters.huggingface.weights import in_memory
from c2r.errors import PlanMismatchError
from c2r.ops.limits import check_top_t
from c2r.parallel import whole
from c2r.plans import LayerPlan, Plan

_NEXT_STEP = "profile this model and make a plan from that profile"


def fingerprint(model: nn.Module, sites: Sequence[RouterSite]) -> dict[str, str]:
    """Digests that identify a model: `{"structure": ..., "weights": ...}`.

    `structure` covers the family and each router's name, E and k. `weights` covers the routers'
    own parameters and buffers, cast to bfloat16 so that the dtype a model was loaded in does not
    matter. Where a model's weights are kept does not matter either; of one that FSDP shards, all
    ranks must ask. Profiles and plans keep it in their provenance as `model_fingerprint`.
    """
    shapes = [(site.name, site.num_experts, site.top_k) for site in sites]
    return {
        "structure": structure_digest(model_type(model), shapes),
        "weights": weights_digest((site.name, router_tensors(site)) for site in sites),
    }


def router_tensors(site: RouterSite) -> dict[str, Tensor]:
    """A router's own parameters and buffers, by their names in it."""
    with in_memory(site.module):
        tensors = site.module.state_dict().items()
        # A site that selects for its own experts, as in DBRX, holds them too.
        return {name: whole(value) for name, value in tensors if not name.startswith("experts.")}


def check_plan(plan: Plan, model: nn.Module, sites: Sequence[RouterSite], strict: bool) -> None:
    """Raises `PlanMismatchError` unless the plan was made for this model.

    `strict=False` takes a plan for a model of the same structure whose weights have changed.
    """
    ours = [(site.num_experts, site.top_k) for site in sites]
    theirs = [(layer.num_experts, layer.top_k) for layer in plan.layers]
    if ours != theirs:
        raise PlanMismatchError(
            f"the plan is for {_describe(theirs)}, but {model_type(model)} has "
            f"{_describe(ours)}; {_NEXT_STEP}"
        )
    for site, layer in zip(sites, plan.layers, strict=True):
        _check_layer(site, layer)
    known = plan.provenance.get("model_fingerprint")
    if isinstance(known, Mapping):
        check_fingerprint(known, fingerprint(model, sites), strict)


def _describe(layers: list[tuple[int, int]]) -> str:
    runs = [(shape, len(list(run))) for shape, run in groupby(layers)]
    return " + ".join(
        f"{num_layers} layers of {num_experts} experts with k = {top_k}"
        for (num_experts, top_k), num_layers in runs
    )


def _check_layer(site: RouterSite, layer: LayerPlan) -> None:
    if layer.name and layer.name != site.name:
        raise PlanMismatchError(
            f"the plan names router {layer.name} where the model has {site.name}; {_NEXT_STEP}"
        )
    if layer.policy == "c2r":
        check_top_t(layer.top_t, site.num_experts, site.top_k)


def check_fingerprint(known: Mapping[str, Any], found: Mapping[str, str], strict: bool) -> None:
    """Raises `PlanMismatchError` unless a plan for the model `known` is for the one `found`.

    `strict=False` takes other weights; a plan need not say which it is for.
    """
    if known.get("structure") != found["structure"]:
        raise PlanMismatchError(
            f"the plan was made for a model of structure {known.get('structure')}, this one has "
            f"{found['structure']}; {_NEXT_STEP}"
        )
    if strict and known.get("weights", found["weights"]) != found["weights"]:
        raise PlanMismatchError(
            f"the plan was made for router weights {known['weights']}, this model has "
            f"{found['weights']}; {_NEXT_STEP}, or, if the model was fine-tuned since, apply it "
            "with strict=False (`c2r apply --other-weights`)"
        )
