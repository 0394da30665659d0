"""Routers that probing cannot verify: known by their class, or refused with the reason.

Add one with `register_router`. LLaMA-MoE is the example: its remote code asks for one expert more
than it uses, and its model cannot run at all before the user has repaired its configuration.

    register_router(
        RouterSpec(
            class_name="TopKBalancedNoisyGate",
            num_experts="num_experts",
            top_k="num_selects",
            num_extra=1,
        )
    )
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from c2r.adapters.huggingface.models import module_at, own_path
from c2r.adapters.huggingface.routers.sites import RouterSite
from c2r.errors import ModelError
from c2r.traces import ScoreKind

REFUSED = {
    "doge": "its top-k chooses product-key slots, which are not expert ids",
    "nllb-moe": "its router drops tokens by capacity and takes two argmax instead of a top-k",
    "switch_transformers": "each token uses one expert, so there is nothing to constrain",
}
"""Model types that are refused, and why."""

STATIC_ROUTERS = frozenset({"DeepseekV4HashRouter"})
"""Classes of routers that look experts up by token id: such layers choose nothing, and stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSpec:
    """How to read a router of a known class, whose forward must call top-k on `[..., E]` scores.

    Attributes:
        class_name: name of the router's class.
        num_experts: name of the attribute that holds E.
        top_k: name of the attribute that holds k, experts used per token.
        num_extra: how many more the top-k call asks for; never beyond E.
        score_kind: what the scores in that call are.
        num_dims: their dimensions.
        path_suffix: how the module's path must end; empty for any path.
    """

    class_name: str
    num_experts: str
    top_k: str
    num_extra: int = 0
    score_kind: ScoreKind = ScoreKind.LOGITS
    num_dims: int = 2
    path_suffix: str = ""

    def site(self, name: str, module: nn.Module) -> RouterSite:
        """The site of `module`. Raises `ModelError` if it lacks an attribute."""
        try:
            num_experts = int(getattr(module, self.num_experts))
            top_k = int(getattr(module, self.top_k))
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(
                f"router {name} ({self.class_name}) cannot be read as registered: {error}; "
                "correct its RouterSpec"
            ) from None
        return RouterSite(
            path=own_path(name),
            module=module,
            num_experts=num_experts,
            top_k=top_k,
            call_k=min(top_k + self.num_extra, num_experts),
            score_kind=self.score_kind,
            num_dims=self.num_dims,
        )


_SPECS: dict[str, list[RouterSpec]] = {}


def register_router(spec: RouterSpec) -> None:
    """Makes routers of the class `spec.class_name` known, in this process, without a probe.

    A later spec of the same class and path replaces the earlier one.
    """
    others = [s for s in _SPECS.get(spec.class_name, []) if s.path_suffix != spec.path_suffix]
    _SPECS[spec.class_name] = [*others, spec]


def registered_specs() -> tuple[RouterSpec, ...]:
    """All specs in force, those of `register_router` among them."""
    return tuple(spec for specs in _SPECS.values() for spec in specs)


def registered_sites(model: nn.Module) -> Iterator[RouterSite]:
    """The sites of a model whose router classes are registered, in the model's order."""
    for name, module in model.named_modules():
        own = own_path(name)
        for spec in _SPECS.get(type(module).__name__, ()):
            if own.endswith(spec.path_suffix) and module_at(model, own) is module:
                yield spec.site(name, module)
                break


for _spec in (
    RouterSpec(
        class_name="TopKBalancedNoisyGate",
        num_experts="num_experts",
        top_k="num_selects",
        num_extra=1,
    ),
    RouterSpec(class_name="Llama4Router", num_experts="num_experts", top_k="top_k"),
    RouterSpec(
        class_name="JetMoeTopKGating",
        num_experts="num_experts",
        top_k="top_k",
        path_suffix="mlp.router",
    ),
    RouterSpec(
        class_name="ZayaRouter",
        num_experts="num_router_classes",
        top_k="top_k",
        score_kind=ScoreKind.PROBABILITIES,
        num_dims=3,
    ),
):
    register_router(_spec)
