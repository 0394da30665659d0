"""Runs a model with experts chosen elsewhere, and tells where it would have chosen others."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from c2r.adapters.huggingface.models import model_type, unwrapped
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.sites import RouterSite, SelectionRule
from c2r.adapters.huggingface.taps.install import install, installed, uninstall_unused
from c2r.errors import InputError, ModelError, RoutingError
from c2r.routing import RoutingPolicy, TopKPolicy

_SAME_SCORE = 1e-4
"""Relative difference of scores up to which two engines, each rounding in its own way, may order
them either way. Chosen by hand: what float32 engines differ by in their log-probabilities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedLayer:
    """How often one router would have chosen other experts for the tokens that it was given.

    Attributes:
        name: of the router.
        num_tokens: tokens replayed.
        num_tied: of these, with other experts of the same scores.
        num_other: of these, with experts of other scores.
    """

    name: str
    num_tokens: int
    num_tied: int
    num_other: int


class Replay:
    """A replay that is under way; `layers` tells what it found so far."""

    def __init__(self, policies: Sequence["_ReplayPolicy"]) -> None:
        self._policies = policies

    @property
    def layers(self) -> tuple[ReplayedLayer, ...]:
        """The layers in the model's order."""
        return tuple(
            ReplayedLayer(
                name=policy.site.name,
                num_tokens=policy.num_tokens,
                num_tied=int(policy.num_tied),
                num_other=int(policy.num_other),
            )
            for policy in self._policies
        )


@contextmanager
def replay(model: nn.Module, expert_ids: Sequence[Tensor]) -> Iterator[Replay]:
    """Inside the block the model's tokens use the given experts, weighed by its own scores.

    What a model under a plan would have chosen by itself is the choice of the plan's policy.

        with replay(model, ids_by_layer) as replayed:
            model(input_ids=ids)
        print(replayed.layers)

    Args:
        model: a transformers model, constrained or not.
        expert_ids: for each router in the model's order `[tokens, k]`, in the order in which the
            forward passes inside the block bring the tokens, padding included. A place that
            repeats the best of a token's experts is empty.

    Raises:
        ModelError: the model is not supported, or chooses in two steps (PhiMoE).
        InputError: the ids are not of this model.
        RoutingError: a forward pass inside the block brings more tokens than there are ids.
    """
    model = unwrapped(model)
    installation = installed(model) or install(model, find_sites(model))
    with ExitStack() as undo:
        undo.callback(uninstall_unused, model)
        _check(model, installation.sites, expert_ids)
        policies = [
            _ReplayPolicy(router.c2r_site, ids, router.c2r_policy or TopKPolicy())
            for router, ids in zip(installation.routers, expert_ids, strict=True)
        ]
        for router, policy in zip(installation.routers, policies, strict=True):
            undo.callback(setattr, router, "c2r_policy", router.c2r_policy)
            router.c2r_policy = policy
        undo.callback(setattr, installation, "is_replayed", False)
        installation.is_replayed = True
        yield Replay(policies)


def _check(model: nn.Module, sites: Sequence[RouterSite], expert_ids: Sequence[Tensor]) -> None:
    if any(site.rule is not SelectionRule.TOP_K for site in sites):
        raise ModelError(f"{model_type(model)} chooses its experts one by one: no replay")
    if len(sites) != len(expert_ids):
        raise InputError(
            f"the trace has {len(expert_ids)} layers, {model_type(model)} has {len(sites)} "
            "routers; give a trace of this model"
        )
    for site, ids in zip(sites, expert_ids, strict=True):
        if ids.ndim != 2 or ids.shape[1] != site.top_k or ids.dtype.is_floating_point:
            raise InputError(
                f"the trace has {list(ids.shape)} {ids.dtype} for {site.name}, which needs "
                f"[tokens, {site.top_k}] integers; give a trace of this model"
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < site.num_experts:
            raise InputError(
                f"the trace names experts {int(ids.min())} to {int(ids.max())} for {site.name}, "
                f"which has {site.num_experts}; give a trace of this model, without padding"
            )


class _ReplayPolicy(RoutingPolicy):
    """Takes a token's experts from a trace; counts where `own`, the model's policy, differs."""

    def __init__(self, site: RouterSite, expert_ids: Tensor, own: RoutingPolicy) -> None:
        super().__init__()
        self.site, self.own = site, own
        self.drops_experts = own.drops_experts
        self.num_tokens = 0
        self.num_tied = self.num_other = torch.tensor(0)
        self._expert_ids = expert_ids.long()

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        rows = scores.detach().reshape(-1, scores.shape[-1])
        stop = self.num_tokens + len(rows)
        if stop > len(self._expert_ids):
            raise RoutingError(
                f"router {self.site.name} got {stop} tokens, the trace has "
                f"{len(self._expert_ids)}; run the text that was traced"
            )
        given = self._expert_ids[self.num_tokens : stop].to(rows.device)
        # The best first, as every policy gives them: an empty place repeats it.
        order = rows.gather(-1, given).argsort(dim=-1, descending=True, stable=True)
        given = given.gather(-1, order)
        self._compare(rows, given, self.own(scores, k, blocked).reshape(given.shape))
        self.num_tokens = stop
        return given.view(*scores.shape[:-1], k)

    def _compare(self, scores: Tensor, given: Tensor, own: Tensor) -> None:
        nobody = torch.zeros_like(scores, dtype=torch.bool)
        ours, theirs = (nobody.scatter(-1, ids, True) for ids in (own, given))
        differs = (ours != theirs).any(-1)
        best = own.shape[-1]
        only_ours, only_theirs = (
            scores.masked_fill(~only, -torch.inf).topk(best, dim=-1).values
            for only in (ours & ~theirs, theirs & ~ours)
        )
        is_same = torch.isclose(only_ours, only_theirs, rtol=_SAME_SCORE, atol=0.0).all(-1)
        self.num_tied = self.num_tied + (differs & is_same).sum().cpu()
        self.num_other = self.num_other + (differs & ~is_same).sum().cpu()
