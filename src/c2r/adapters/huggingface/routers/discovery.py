"""Finds a model's routers: by probing, verified against what the experts were handed."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from c2r.adapters.huggingface.models import model_type, module_at, own_path, unwrapped
from c2r.adapters.huggingface.routers.probe import HandedIds, Selection, probe
from c2r.adapters.huggingface.routers.registry import (
    REFUSED,
    STATIC_ROUTERS,
    registered_sites,
    registered_specs,
)
from c2r.adapters.huggingface.routers.sites import RouterSite, SelectionRule, tapped_sites
from c2r.errors import ModelError

_NO_MODULE = nn.Identity()
_PLAIN = (bool, int, float, str)


def find_sites(model: nn.Module) -> tuple[RouterSite, ...]:
    """The routers of a model, in the model's order, verified by a tiny forward pass.

    The pass runs on 8 token ids in evaluation mode and leaves the model as it was. A router
    counts only if the ids that its top-k call chose are those that its experts were handed. Asked
    again, a model that has not changed is not run again.

    Raises:
        ModelError: not a Mixture-of-Experts model, or one that is not supported.
    """
    model = unwrapped(model)
    tapped = tapped_sites(model)
    if tapped:
        return tapped
    found = _FOUND.get(model)
    if found is None or found.state != _state(model):
        sites = tuple(replace(site, module=_NO_MODULE) for site in _discover(model))
        found = _FOUND[model] = _Found(sites=sites, state=_state(model))
    return tuple(replace(site, module=module_at(model, site.path)) for site in found.sites)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Found:
    """The sites of a model, without their modules, and the state in which they were found."""

    sites: tuple[RouterSite, ...]
    state: tuple[Any, ...]


# Beside the models, not in an attribute of theirs: nothing to be copied, pickled or saved along.
# Weak on both sides: a router may lead back to its model, which a strong one would keep for ever.
_FOUND: weakref.WeakKeyDictionary[nn.Module, _Found] = weakref.WeakKeyDictionary()


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Equal before and after where the model routes by the same modules in the same way.

    Of each module: path, identity, class, the type of a forward of its own, as kernels set one,
    and plain public attributes, among them k, which users change on loaded models.
    """
    modules = tuple(
        (path, weakref.ref(module), type(module), *_settings(module))
        for path, module in model.named_modules()
    )
    has_weights = not any(parameter.is_meta for parameter in model.parameters())
    return modules, str(getattr(model, "config", None)), has_weights, registered_specs()


def _settings(module: nn.Module) -> Iterator[object]:
    attributes = vars(module)
    yield type(attributes.get("forward"))
    for name, value in attributes.items():
        is_setting = name != "training" and not name.startswith("_")
        if is_setting and isinstance(value, _PLAIN):
            yield name, value


def _discover(model: nn.Module) -> tuple[RouterSite, ...]:
    """The sites of a model without taps: those of registered routers, else what a probe shows."""
    family = model_type(model)
    if family in REFUSED:
        raise ModelError(f"{family} is not supported: {REFUSED[family]}; use another MoE model")
    if any("_fsdp_wrapped_module" in module._modules for module in model.modules()):
        raise ModelError(
            f"{family} is inside FullyShardedDataParallel, which hides its weights; shard it by "
            "torch's fully_shard"
        )
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
    """The sites of the selections whose ids reached experts, in the model's order."""
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
    # Events come as layers run, which need not be the order in which the model lists them.
    order = [own_path(name) for name, _ in model.named_modules()]
    return tuple(sorted(sites.values(), key=lambda site: order.index(site.path)))


def _chose(selection: Selection, handed: HandedIds) -> bool:
    """Whether the selecting call chose the ids that the experts were handed."""
    if len(selection.ids) != len(handed.ids):
        return False
    width = handed.ids.shape[1]
    if selection.rule is SelectionRule.SCATTER:
        # That call knows the first of the two experts; the second is taken after it.
        return width == 2 and bool((handed.ids[:, :1] == selection.ids).all())
    return width <= selection.ids.shape[1] and torch.equal(
        handed.ids.long(), selection.ids[:, :width]
    )


def _site(model: nn.Module, selection: Selection, handed: HandedIds) -> RouterSite:
    """The site of a selection of which the experts used the first `top_k` of `call_k` ids."""
    top_k = handed.ids.shape[1]
    experts = model.get_submodule(handed.name)
    return RouterSite(
        path=own_path(selection.name),
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
