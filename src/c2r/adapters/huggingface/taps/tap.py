"""The tap: a router whose own top-k call is answered by a routing policy.

A tapped router keeps its class's forward. Only the call that selects experts is intercepted, so
scoring, bias, groups and renormalisation stay the model's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from c2r.adapters.huggingface.routers.sites import RouterSite, SelectionRule, SiteHolder
from c2r.adapters.huggingface.routers.torch_calls import (
    GATHER,
    SCATTER,
    TOP_K,
    Args,
    Kwargs,
    read_gather,
    read_removal,
    read_top_k,
)
from c2r.routing import RoutingPolicy
from c2r.traces import ScoreKind, used_places


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

    def forget(self) -> None:
        """No forward pass is under way; also after one that an error ended."""
        self.is_running = False
        self.nan_flags.clear()


@dataclass(slots=True, eq=False)
class Tap:
    """What one tapped router counted and decided.

    `num_interceptions_at_entry` is `num_interceptions` when the block around the router began.
    """

    original_class: type[nn.Module]
    state: ForwardState
    num_interceptions: int = 0
    num_interceptions_at_entry: int = 0
    num_tokens: int = 0
    num_filled: Tensor | None = None
    choices: list[RouterCall] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets all counts."""
        self.num_tokens, self.num_filled = 0, None


class TappedRouter(SiteHolder):
    """Mixed in before a router's own class by `attach`."""

    c2r_tap: Tap
    c2r_policy: RoutingPolicy | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The router's own call, its selecting call intercepted."""
        with _Interception(self):
            output = super().__call__(*args, **kwargs)
        if not torch.compiler.is_compiling():
            tap = self.c2r_tap
            # A recorded choice gets its output here: only now are the weights known.
            if tap.choices and tap.state.is_running:
                tap.choices[-1].output = output
        return output

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the router's own class: the tapped one is in no module."""
        return _new_tapped, (self.c2r_tap.original_class,), vars(self).copy()


def attach(site: RouterSite, state: ForwardState) -> TappedRouter:
    """Turns the site's module into a tapped router without a policy."""
    cls = type(site.module)
    # A class of its own, not a wrapper: path, parameters and isinstance checks stay as they were.
    site.module.__class__ = _tapped_class(cls)
    router = cast(TappedRouter, site.module)
    router.c2r_site = site
    router.c2r_tap = Tap(original_class=cls, state=state)
    router.c2r_policy = None
    return router


def _tapped_class(cls: type[nn.Module]) -> type[TappedRouter]:
    return type(f"C2R{cls.__name__}", (TappedRouter, cls), {})


def _new_tapped(cls: type[nn.Module]) -> TappedRouter:
    """A tapped router that has no state yet."""
    made = _tapped_class(cls)
    return made.__new__(made)


def detach(router: TappedRouter) -> None:
    """Gives the module its own class back and removes what `attach` added."""
    original_class = router.c2r_tap.original_class
    del router.c2r_policy, router.c2r_tap, router.c2r_site
    router.__class__ = _untapped(type(router), original_class)


def _untapped(cls: type[Any], original: type[nn.Module]) -> Any:
    """The router's own class; where FSDP has put one around the tapped, the same around its own."""
    if not issubclass(cls, TappedRouter):
        return cls
    if TappedRouter in cls.__bases__:
        return original
    bases = tuple(_untapped(base, original) for base in cls.__bases__)
    own = {name: value for name, value in vars(cls).items() if name == "__deepcopy__"}
    return type(cls.__name__.replace("C2R", "", 1), bases, own)


def output_entries(output: Any) -> tuple[Any, ...]:
    """The entries of a router's output, whether a tuple or a mapping; none for one tensor."""
    if isinstance(output, Mapping):
        return tuple(output.values())
    return tuple(output) if isinstance(output, tuple | list) else ()


class _Interception(TorchFunctionMode):
    """Answers the calls that select inside one call of a router; every other runs as it came."""

    def __init__(self, router: TappedRouter) -> None:
        super().__init__()
        self.router = router

    def __torch_function__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        """See `TorchFunctionMode.__torch_function__`."""
        kwargs = kwargs or {}
        # torch leaves this mode while it runs, so that what `func` calls comes by no second time.
        is_top_k = self.router.c2r_site.rule is SelectionRule.TOP_K
        if func in TOP_K and is_top_k:
            scores = _selected_from(self.router.c2r_site, args, kwargs)
            if scores is not None:
                return _select(self.router, scores, func, args, kwargs)
        result = func(*args, **kwargs)
        if func in GATHER:
            return _weights_read(self.router, result, args, kwargs)
        if func in SCATTER and not is_top_k:
            return _without_top1(self.router, result, args, kwargs)
        return result


def _selected_from(site: RouterSite, args: Args, kwargs: Kwargs) -> Tensor | None:
    """The scores `[..., E]` of a top-k call, if it is the one that selects the site's experts."""
    call = read_top_k(args, kwargs)
    if call is None:
        return None
    scores, k = call
    is_selection = scores.ndim == site.num_dims and k == site.call_k
    return scores if is_selection and scores.shape[-1] == site.num_experts else None


def _select(
    router: TappedRouter, scores: Tensor, func: Callable[..., Any], args: Args, kwargs: Kwargs
) -> Any:
    """Values and ids `[..., call_k]` in place of those of the router's own call."""
    site, policy = router.c2r_site, router.c2r_policy
    if policy is None or policy.is_unconstrained:
        result = func(*args, **kwargs)
    else:
        ids = _choose(policy, site, scores)
        values = scores.gather(-1, ids)
        if policy.drops_experts:
            nothing = -torch.inf if site.score_kind is ScoreKind.LOGITS else 0.0
            values = values.masked_fill(~used_places(ids), nothing)
        result = torch.return_types.topk((values, ids))
    if not torch.compiler.is_compiling():
        _report(router, scores, result[0], result[1])
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


def _weights_read(router: TappedRouter, result: Tensor, args: Args, kwargs: Kwargs) -> Tensor:
    """Weights gathered at the chosen ids, as behind a correction bias: 0 for what was dropped."""
    policy, site = router.c2r_policy, router.c2r_site
    call = None if policy is None or not policy.drops_experts else read_gather(args, kwargs)
    if call is None:
        return result
    source, index = call
    is_choice = source.shape[-1] == site.num_experts and index.shape[-1] == site.call_k
    return result.masked_fill(~used_places(index), 0.0) if is_choice else result


def _without_top1(router: TappedRouter, result: Tensor, args: Args, kwargs: Kwargs) -> Tensor:
    """PhiMoE: the scores with the top-1 at -inf, from which the second expert is taken."""
    call = read_removal(args, kwargs)
    if call is None or call[0].shape[-1] != router.c2r_site.num_experts:
        return result
    (scores, top1), policy = call, router.c2r_policy
    if policy is not None and not policy.is_unconstrained:
        allowed = policy.get_buffer("allowed")
        result = result.masked_fill(~allowed[top1.squeeze(-1)], -torch.inf)
    if not torch.compiler.is_compiling():
        _report(router, scores, scores.gather(-1, top1), None)
    return result


def _report(router: TappedRouter, scores: Tensor, values: Tensor, ids: Tensor | None) -> None:
    """Eager only: counters in compiled code would be compiled anew for every value."""
    tap, site, policy = router.c2r_tap, router.c2r_site, router.c2r_policy
    tap.num_interceptions += 1
    if not tap.state.is_running:
        return
    # On the device until the forward pass ends: asking here would wait for it at every router.
    tap.state.nan_flags.append((site.name, values.detach().isnan().any()))
    is_constrained = policy is not None and not policy.is_unconstrained
    if is_constrained:
        tap.num_tokens += scores.shape[:-1].numel()
        if site.group_mark is not None and ids is not None:
            _count_filled(tap, policy, ids[..., : site.top_k])
    if tap.state.is_recording:
        shown = scores if tap.state.keeps_graph else scores.detach()
        tap.choices.append(RouterCall(shown, ids, is_constrained))


def _count_filled(tap: Tap, policy: RoutingPolicy | None, chosen: Tensor) -> None:
    allowed = getattr(policy, "allowed", None)
    if allowed is not None:
        filled = (~allowed[chosen[..., :1], chosen]).any(-1).sum()
        tap.num_filled = filled if tap.num_filled is None else tap.num_filled + filled
