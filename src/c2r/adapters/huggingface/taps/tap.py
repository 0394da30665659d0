"""The tap: a router whose own top-k call is answered by a routing policy.

A tapped router keeps its class's forward. Only the call that selects experts is intercepted, so
scoring, bias, groups and renormalisation stay the model's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from c2r.adapters.huggingface.routers.sites import RouterSite, SelectionRule
from c2r.routing import RoutingPolicy
from c2r.traces import ScoreKind, used_places

_TOP_K = (torch.topk, Tensor.topk)
_GATHER = (torch.gather, Tensor.gather)
_SCATTER = (torch.scatter, Tensor.scatter)


@dataclass(slots=True, eq=False)
class RouterCall:
    """What one router call decided, as it came: nothing sorted, padding included.

    `scores` `[..., E]`, `ids` `[..., >= k]`; `ids` None where only the output has them.
    """

    scores: Tensor
    ids: Tensor | None
    is_ordered: bool
    output: Any = None


@dataclass(slots=True, eq=False)
class ForwardState:
    """What the routers of one model report while it runs.

    Routers outside a forward pass of the model, as when a checkpointed layer is recomputed for
    its gradient, report nothing. With `keeps_graph`, gradients flow to the scores that they report.
    """

    is_running: bool = False
    is_recording: bool = False
    keeps_graph: bool = False
    nan_flags: list[tuple[str, Tensor]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Tap:
    """State of one tapped router."""

    site: RouterSite
    original_class: type[nn.Module]
    state: ForwardState
    num_interceptions: int = 0
    num_entered: int = 0
    num_tokens: int = 0
    num_filled: Tensor | None = None
    choices: list[RouterCall] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets all counts."""
        self.num_tokens, self.num_filled = 0, None


class TappedRouter(nn.Module):
    """Mixed in before a router's own class by `attach`."""

    c2r_tap: Tap
    c2r_policy: RoutingPolicy | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The router's own call, its selecting call intercepted."""
        with _Interception(self):
            output = super().__call__(*args, **kwargs)
        if not torch.compiler.is_compiling():
            tap = self.c2r_tap
            if tap.choices and tap.state.is_running:
                tap.choices[-1].output = output
        return output


def attach(site: RouterSite, state: ForwardState) -> Tap:
    """Turns the site's module into a tapped router without a policy."""
    cls = type(site.module)
    tap = Tap(site=site, original_class=cls, state=state)
    site.module.__class__ = type(f"C2R{cls.__name__}", (TappedRouter, cls), {})
    site.module.c2r_tap = tap  # type: ignore[assignment]
    site.module.c2r_policy = None  # type: ignore[assignment]
    return tap


def detach(tap: Tap) -> None:
    """Gives the module its own class back and removes what `attach` added."""
    module = tap.site.module
    del module.c2r_policy
    del module.c2r_tap
    module.__class__ = tap.original_class


class _Interception(TorchFunctionMode):
    def __init__(self, router: TappedRouter) -> None:
        super().__init__()
        self.router = router

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answers the calls that select; every other runs as it is."""
        kwargs = kwargs or {}
        if func in _TOP_K:
            return _top_k(self.router, func, *args, **kwargs)
        if func in _GATHER:
            return _gather(self.router, func, *args, **kwargs)
        if func in _SCATTER:
            return _scatter(self.router, func, *args, **kwargs)
        return func(*args, **kwargs)


def _top_k(
    router: TappedRouter,
    func: Callable[..., Any],
    input: Tensor,
    k: int,
    dim: int = -1,
    **options: bool,
) -> Any:
    site = router.c2r_tap.site
    if (
        site.rule is not SelectionRule.TOP_K
        or input.ndim != site.num_dims
        or input.shape[-1] != site.num_experts
        or k != site.call_k
        or dim not in (-1, input.ndim - 1)
    ):
        return func(input, k, dim, **options)
    policy = router.c2r_policy
    if policy is None or policy.is_unconstrained:
        result = func(input, k, dim, **options)
    else:
        ids = _choose(policy, site, input)
        values = input.gather(-1, ids)
        if policy.drops_experts:
            nothing = -torch.inf if site.score_kind is ScoreKind.LOGITS else 0.0
            values = values.masked_fill(~used_places(ids), nothing)
        result = torch.return_types.topk((values, ids))
    if not torch.compiler.is_compiling():
        _report(router, input, result[0], result[1])
    return result


def _choose(policy: RoutingPolicy, site: RouterSite, scores: Tensor) -> Tensor:
    """Ids `[..., call_k]`: those of the policy, then the best of the rest where more are asked."""
    blocked = None if site.group_mark is None else scores.detach() == site.group_mark
    ids: Tensor = policy(scores, site.top_k, blocked)
    if site.call_k > site.top_k:
        rest = scores.detach().scatter(-1, ids, -torch.inf)
        extra = rest.topk(site.call_k - site.top_k, dim=-1).indices
        ids = torch.cat([ids, extra], dim=-1)
    return ids


def _gather(
    router: TappedRouter,
    func: Callable[..., Any],
    input: Tensor,
    dim: int,
    index: Tensor,
    **options: bool,
) -> Any:
    """Weights read at the chosen ids, as behind a correction bias: 0 for what was dropped."""
    result = func(input, dim, index, **options)
    site, policy = router.c2r_tap.site, router.c2r_policy
    is_choice = input.shape[-1] == site.num_experts and index.shape[-1] == site.call_k
    if policy is None or not policy.drops_experts or not is_choice:
        return result
    return result.masked_fill(~used_places(index), 0.0)


def _scatter(
    router: TappedRouter, func: Callable[..., Any], input: Tensor, *args: Any, **options: Any
) -> Any:
    """PhiMoE: the scores with the top-1 at -inf, from which the second expert is taken."""
    result = func(input, *args, **options)
    site = router.c2r_tap.site
    if site.rule is not SelectionRule.SCATTER or input.shape[-1] != site.num_experts:
        return result
    policy, top1 = router.c2r_policy, args[1]
    if policy is not None and not policy.is_unconstrained:
        allowed = policy.get_buffer("allowed")
        result = result.masked_fill(~allowed[top1.squeeze(-1)], -torch.inf)
    if not torch.compiler.is_compiling():
        _report(router, input, input.gather(-1, top1), None)
    return result


def _report(router: TappedRouter, scores: Tensor, values: Tensor, ids: Tensor | None) -> None:
    """Eager only: counters in compiled code would be compiled anew for every value."""
    tap, policy = router.c2r_tap, router.c2r_policy
    tap.num_interceptions += 1
    if not tap.state.is_running:
        return
    tap.state.nan_flags.append((tap.site.name, values.detach().isnan().any()))
    is_constrained = policy is not None and not policy.is_unconstrained
    if is_constrained:
        tap.num_tokens += scores.shape[:-1].numel()
        if tap.site.group_mark is not None and ids is not None:
            _count_filled(tap, policy, ids)
    if tap.state.is_recording:
        shown = scores if tap.state.keeps_graph else scores.detach()
        tap.choices.append(RouterCall(shown, ids, is_constrained))


def _count_filled(tap: Tap, policy: RoutingPolicy | None, ids: Tensor) -> None:
    allowed = getattr(policy, "allowed", None)
    if allowed is not None:
        chosen = ids[..., : tap.site.top_k]
        filled = (~allowed[chosen[..., :1], chosen]).any(-1).sum()
        tap.num_filled = filled if tap.num_filled is None else tap.num_filled + filled
