"""Finds a model's routers: by probing, verified against what the experts were handed."""

from collections.abc import Sequence

import torch
from torch import nn

from c2r.adapters.huggingface.routers.probe import HandedIds, Selection, probe
from c2r.adapters.huggingface.routers.registry import REFUSED, STATIC_ROUTERS, registered_sites
from c2r.adapters.huggingface.routers.sites import RouterSite, SelectionRule, model_type
from c2r.errors import ModelError


def discover_sites(model: nn.Module) -> tuple[RouterSite, ...]:
    """The sites of a model that carries no taps; see `find_sites`."""
    family = model_type(model)
    if family in REFUSED:
        raise ModelError(f"{family} is not supported: {REFUSED[family]}; use another MoE model")
    sites = tuple(registered_sites(model))
    if not sites:
        sites = _verified_sites(model, probe(model))
    if not sites:
        raise ModelError(
            f"{family} is not a Mixture-of-Experts model that c2r knows: no router was seen whose "
            "chosen ids reach experts; use an MoE model, or describe its router with "
            "register_router"
        )
    return sites


def _verified_sites(
    model: nn.Module, events: Sequence[Selection | HandedIds]
) -> tuple[RouterSite, ...]:
    sites: dict[str, RouterSite] = {}
    for index, handed in enumerate(events):
        if not isinstance(handed, HandedIds):
            continue
        # The latest: with one group, the ranking of groups looks like a choice of experts too.
        before = (event for event in reversed(events[:index]) if isinstance(event, Selection))
        selection = next((event for event in before if _chose(event, handed)), None)
        if selection is not None:
            sites[selection.name] = _site(model, selection, handed)
        elif handed.name.rpartition(".")[2] == "experts":
            _check_static(model, handed.name)
    order = [name for name, _ in model.named_modules()]
    return tuple(sorted(sites.values(), key=lambda site: order.index(site.name)))


def _chose(selection: Selection, handed: HandedIds) -> bool:
    """Whether the selecting call chose the ids that the experts were handed."""
    if len(selection.ids) != len(handed.ids):
        return False
    width = handed.ids.shape[1]
    if selection.rule is SelectionRule.SCATTER:
        return width == 2 and bool((handed.ids[:, :1] == selection.ids).all())
    return width <= selection.ids.shape[1] and torch.equal(
        handed.ids.long(), selection.ids[:, :width]
    )


def _site(model: nn.Module, selection: Selection, handed: HandedIds) -> RouterSite:
    top_k = handed.ids.shape[1]
    experts = model.get_submodule(handed.name)
    return RouterSite(
        name=selection.name,
        module=model.get_submodule(selection.name),
        num_experts=selection.num_experts,
        top_k=top_k,
        call_k=max(top_k, selection.ids.shape[1]),
        score_kind=selection.score_kind,
        num_dims=selection.num_dims,
        group_mark=selection.group_mark,
        num_free_experts=int(getattr(experts, "zero_expert_num", 0) or 0),
        rule=selection.rule,
    )


def _check_static(model: nn.Module, experts: str) -> None:
    block = model.get_submodule(experts.rpartition(".")[0])
    if not any(type(child).__name__ in STATIC_ROUTERS for child in block.children()):
        raise ModelError(
            f"{model_type(model)} is not supported: {experts} is handed experts that no top-k "
            "call of a router chose (a fused, quantised or unknown router); load the model "
            "without kernels, or describe its router with register_router"
        )
