"""Where a model routes: the description of one router that discovery gives and the taps use."""

from dataclasses import dataclass, replace
from enum import StrEnum

from torch import nn

from c2r.adapters.huggingface.models import model_type, module_at, own_path, plain_path
from c2r.errors import ModelError
from c2r.traces import ScoreKind


class SelectionRule(StrEnum):
    """The call by which a router selects.

    `TOP_K`: one top-k over all experts. `SCATTER`: the top-1 first, then the scores with the
    top-1 scattered to -inf (PhiMoE's sparse mixer, always k = 2).
    """

    TOP_K = "topk"
    SCATTER = "scatter"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RouterSite:
    """One router of a model.

    Attributes:
        path: module path of the router in the model, without what PEFT has put around it.
        module: the module whose forward selects the experts.
        num_experts: E, the width of the selection scores.
        top_k: experts per token that the model uses.
        call_k: k of the router's own top-k call, which may exceed `top_k`.
        score_kind: what the selection scores are.
        num_dims: dimensions of the selection scores.
        group_mark: the score that the model gives to experts outside a token's groups; None for
            a router without a group limit.
        num_free_experts: the last so many experts compute nothing and are always allowed.
        rule: the call by which the router selects.
    """

    path: str
    module: nn.Module
    num_experts: int
    top_k: int
    call_k: int
    score_kind: ScoreKind
    num_dims: int = 2
    group_mark: float | None = None
    num_free_experts: int = 0
    rule: SelectionRule = SelectionRule.TOP_K

    @property
    def name(self) -> str:
        """The path in the innermost model: the same whatever is wrapped around the router."""
        return plain_path(self.path)


class SiteHolder(nn.Module):
    """A router that carries its own site, in copies of the model too: one that is tapped."""

    c2r_site: RouterSite


def is_part(site: RouterSite, model: nn.Module) -> bool:
    """Whether the model runs the site's module at the site's path."""
    try:
        return module_at(model, site.path) is site.module
    except AttributeError:
        return False


def tapped_sites(model: nn.Module) -> tuple[RouterSite, ...]:
    """The sites of the routers that are tapped, in the model's order: each carries its own.

    Raises:
        ModelError: the taps were put in through another model that shares these routers.
    """
    sites = {}
    for path, module in model.named_modules():
        if isinstance(module, SiteHolder):
            site, own = module.c2r_site, own_path(path)
            if site.path != own:
                raise tapped_elsewhere(model)
            # Of copies, as PEFT makes them, the one in use counts; it may not be tapped yet.
            sites[own] = replace(site, module=module_at(model, own))
    return tuple(sites.values())


def tapped_elsewhere(model: nn.Module) -> ModelError:
    """The error where the taps of a model's routers belong to another model."""
    return ModelError(
        f"{model_type(model)} holds routers that were constrained or captured through another "
        "model, which it is a part of or wraps; give that model"
    )
