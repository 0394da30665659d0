"""Puts taps into a model and takes them out again; applies plans through them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from c2r.adapters.huggingface.models import (
    model_type,
    module_at,
    running_device,
    unwrapped,
    wrappers,
)
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.model_identity import check_plan
from c2r.adapters.huggingface.routers.sites import (
    RouterSite,
    SelectionRule,
    is_part,
    tapped_elsewhere,
    tapped_sites,
)
from c2r.adapters.huggingface.taps.dropping import check_dropping
from c2r.adapters.huggingface.taps.saving import forget_plan, keep_plan
from c2r.adapters.huggingface.taps.tap import ForwardState, TappedRouter, attach, detach
from c2r.errors import PlanError, PlanMismatchError, RoutingError
from c2r.plans import LayerPlan, Plan
from c2r.routing import C2RPolicy, RankPolicy, RoutingPolicy, make_policy

_ATTRIBUTE = "_c2r_installation"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstraintReport:
    """How the constraint went at one router since the plan was applied.

    Attributes:
        num_tokens: tokens routed under the constraint, padding included.
        num_filled_outside_list: tokens for which the model's own group limit left fewer than k
            allowed experts, so that others of those groups filled up.
    """

    num_tokens: int
    num_filled_outside_list: int


@dataclass(slots=True, eq=False)
class Installation:
    """The tapped routers of one model, and who needs them: a plan, a capture or a replay."""

    state: ForwardState
    routers: list[TappedRouter] = field(default_factory=list)
    blocks: list[nn.Module] = field(default_factory=list)
    """The module that holds each router, or what PEFT has put around it since."""
    handles: list[RemovableHandle] = field(default_factory=list)
    plan: Plan | None = None
    is_captured: bool = False
    is_replayed: bool = False

    @property
    def sites(self) -> tuple[RouterSite, ...]:
        """Of the routers, in the model's order."""
        return tuple(router.c2r_site for router in self.routers)

    def follow(self) -> None:
        """Taps the copies that PEFT has made of routers since, or has put to use again."""
        for index, block in enumerate(self.blocks):
            router = self.routers[index]
            name = router.c2r_site.path.rpartition(".")[2]
            if name in block._modules and block._modules[name] is not router:
                self._move(index, module_at(block, name))

    def _move(self, index: int, found: nn.Module) -> None:
        old = self.routers[index]
        if found is old or not isinstance(found, TappedRouter | old.c2r_tap.original_class):
            return  # a router of another kind is the guard's to tell
        site = replace(old.c2r_site, module=found)
        new = found if isinstance(found, TappedRouter) else attach(site, self.state)
        new.c2r_site, new.c2r_policy, new.c2r_tap.state = site, old.c2r_policy, self.state
        self.routers[index] = new


def apply(model: nn.Module, plan: Plan, strict: bool = True) -> None:
    """Constrains the routing of `model`, in place, as `plan` says.

    A plan applied earlier is replaced. The model's parameters and the keys of its state dict do
    not change. `model.save_pretrained`, `model.push_to_hub` and a Trainer save the plan with the
    model. From now on a router that runs without its top-k call being intercepted, or that
    scores NaN, raises `RoutingError`.

    Args:
        model: a transformers model.
        plan: made from a profile of this model.
        strict: also require that the router weights are those that were profiled.

    Raises:
        ModelError: the model is not supported.
        PlanMismatchError: the plan was made for another model.
    """
    enforce(model, prepare(model, plan, strict))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedPlan:
    """A plan that was checked against a model, with that model's routers and a policy for each."""

    plan: Plan
    sites: tuple[RouterSite, ...]
    policies: tuple[RoutingPolicy, ...]


def prepare(model: nn.Module, plan: Plan, strict: bool = True) -> PreparedPlan:
    """All of `apply` that takes time, so that `enforce` can change plans between two batches.

    The model stays as it is. Arguments and errors are those of `apply`.
    """
    sites = find_sites(model)
    check_plan(plan, model, sites, strict)
    policies = tuple(_policy(site, layer) for site, layer in zip(sites, plan.layers, strict=True))
    if any(policy.drops_experts for policy in policies):
        _check_dropping(model, sites, policies)
    return PreparedPlan(plan=plan, sites=sites, policies=policies)


def _check_dropping(
    model: nn.Module, sites: tuple[RouterSite, ...], policies: Sequence[RoutingPolicy]
) -> None:
    """Only a tapped model can show whether it lets go of experts."""
    installation = installed(model) or install(model, sites)
    try:
        routers = zip(installation.routers, policies, strict=True)
        dropping = [router for router, policy in routers if policy.drops_experts]
        check_dropping(model, installation.routers, dropping)
    finally:
        uninstall_unused(model)


def enforce(model: nn.Module, prepared: PreparedPlan) -> None:
    """Constrains the routing of `model` by a plan that was prepared for it.

    Raises:
        PlanMismatchError: it was prepared for another model, or for other routers of this one.
    """
    given, model = model, unwrapped(model)
    installation = installed(model)
    sites = prepared.sites if installation is None else installation.sites
    is_same = [site.module for site in sites] == [site.module for site in prepared.sites]
    if not is_same or not all(is_part(site, model) for site in sites):
        raise PlanMismatchError(
            f"the plan was prepared for other routers than those that {model_type(model)} has now; "
            "prepare it again, for this model"
        )
    installation = installation or install(model, sites)
    installation.plan = prepared.plan
    for router, policy in zip(installation.routers, prepared.policies, strict=True):
        router.c2r_policy = policy
        router.c2r_tap.reset()
    keep_plan(given, installation)


def remove(model: nn.Module) -> None:
    """Takes the constraint off: the model is again as it was before `apply`."""
    installation = installed(model)
    if installation is None:
        return
    installation.plan = None
    for router in installation.routers:
        router.c2r_policy = None
    config: Any = getattr(unwrapped(model), "config", None)
    if hasattr(config, "c2r"):
        del config.c2r
    uninstall_unused(model)


def constraint_report(model: nn.Module) -> dict[str, ConstraintReport]:
    """Per router of a constrained model, what its constraint met; compiled forwards do not count.

    Empty where no plan is applied.
    """
    installation = installed(model)
    if installation is None or installation.plan is None:
        return {}
    taps = {router.c2r_site.name: router.c2r_tap for router in installation.routers}
    return {
        name: ConstraintReport(
            num_tokens=tap.num_tokens,
            num_filled_outside_list=0 if tap.num_filled is None else int(tap.num_filled),
        )
        for name, tap in taps.items()
    }


def applied_plan(model: nn.Module) -> Plan | None:
    """The plan that constrains the model; None where none does."""
    installation = installed(model)
    return None if installation is None else installation.plan


def keep_plan_around(model: nn.Module) -> None:
    """Lets a model of adapters, put around a constrained one, be saved with that one's plan."""
    installation = installed(model)
    if installation is not None:
        keep_plan(model, installation)


def installed(model: nn.Module) -> Installation | None:
    """The installation of this model.

    Raises:
        ModelError: its routers are tapped through another model, a part of it or around it.
    """
    model = unwrapped(model)
    installation: Installation | None = vars(model).get(_ATTRIBUTE)
    if installation is None and tapped_sites(model):
        raise tapped_elsewhere(model)
    if installation is not None:
        installation.follow()
    return installation


def host_of(model: nn.Module, sites: Sequence[RouterSite]) -> nn.Module:
    """The module whose forward passes count: the base model where it holds all routers."""
    base = getattr(model, "base_model", model)
    inside = set(base.modules())
    return base if all(site.module in inside for site in sites) else model


def install(model: nn.Module, sites: tuple[RouterSite, ...]) -> Installation:
    """Taps every site of `model`, without policies; all or none."""
    model = unwrapped(model)
    state = ForwardState()
    installation = Installation(state=state)
    with ExitStack() as undo:
        undo.callback(_undo, model, installation)
        for index, site in enumerate(sites):
            installation.routers.append(attach(site, state))
            block = model.get_submodule(site.path.rpartition(".")[0])
            installation.blocks.append(block)
            guard = _BlockGuard(installation, index)
            installation.handles += [
                block.register_forward_pre_hook(guard.enter),
                block.register_forward_hook(guard.leave),
            ]
        host, forward = host_of(model, sites), _ForwardGuard(installation)
        installation.handles += [
            # Before other hooks: a router that one of them runs is of this forward pass too.
            host.register_forward_pre_hook(forward.enter, prepend=True),
            host.register_forward_hook(forward.leave),
        ]
        undo.pop_all()
    setattr(model, _ATTRIBUTE, installation)
    keep_plan(model, installation)
    return installation


def uninstall_unused(model: nn.Module) -> None:
    """Removes the taps unless a plan, a capture or a replay needs them."""
    installation = installed(model)
    if installation is None or installation.plan is not None:
        return
    if installation.is_captured or installation.is_replayed:
        return
    inner = unwrapped(model)
    _undo(inner, installation)
    for module in wrappers(model):
        forget_plan(module)
    delattr(inner, _ATTRIBUTE)


def _undo(model: nn.Module, installation: Installation) -> None:
    for handle in installation.handles:
        handle.remove()
    for module in [*model.modules()]:  # copies of routers too
        if isinstance(module, TappedRouter):
            detach(module)


@dataclass(frozen=True, slots=True, eq=False)
class _BlockGuard:
    """Watches the block around a router: where the block ran, the router must have been asked.

    A block that does not run at all (a skipped layer, an unused stack) is no error.
    """

    installation: Installation
    index: int

    @property
    def router(self) -> TappedRouter:
        """The one that is in use."""
        return self.installation.routers[self.index]

    def enter(self, *_: Any) -> None:
        tap = self.router.c2r_tap
        if not torch.compiler.is_compiling():
            tap.num_interceptions_at_entry = tap.num_interceptions

    def leave(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        tap = self.router.c2r_tap
        if tap.num_interceptions == tap.num_interceptions_at_entry:
            raise RoutingError(
                f"router {self.router.c2r_site.name} ran without its top-k call, 0 interceptions "
                "(a fused kernel or a quantised router replaces it): the constraint would not "
                "hold; load the model without use_kernels and with dequantised routers"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _ForwardGuard:
    """Opens and closes the reports of one forward pass, and refuses NaN scores."""

    installation: Installation

    def enter(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.installation.follow()
        state = self.installation.state
        state.forget()
        state.is_running = True

    def leave(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        state = self.installation.state
        flags = tuple(state.nan_flags)
        state.forget()
        device = flags[0][1].device if flags else None
        if flags and torch.stack([flag.to(device) for _, flag in flags]).any():
            name = next(name for name, flag in flags if flag)
            raise RoutingError(
                f"router {name} gave NaN scores; check the model's weights, dtype and input"
            )


def _policy(site: RouterSite, layer: LayerPlan) -> RoutingPolicy:
    """The policy of a layer, at the router; experts that compute nothing may join any other."""
    policy = make_policy(layer, site.score_kind)
    policy = policy.to(running_device(site.module))
    if site.num_free_experts:
        policy.free_experts(site.num_free_experts)
    if policy.is_unconstrained:
        return policy
    if site.rule is SelectionRule.SCATTER and not isinstance(policy, C2RPolicy):
        raise PlanError(
            f"router {site.name} draws its second expert, which only lists of partners can steer; "
            "plan with the c2r policy"
        )
    if (
        site.group_mark is not None
        and isinstance(policy, RankPolicy)
        and policy.rule.is_group_limited
    ):
        raise PlanError(
            f"router {site.name} limits each token to groups of its own, beside which "
            "group_limited cannot hold to m ranks; plan with the budgeted policy"
        )
    return policy
