"""Policies as modules without parameters, so that their tables follow the model's device.

Of each policy, `LayerPlan.strength` is the one number:

    top_k           none; the k best-scored experts
    c2r             T, partners that may accompany the top-1 (Zhang et al., NAACL 2025)
    c2r_placed      m, ranks whose experts may accompany the top-1
    group_limited   m, ranks per token by the sums of their top k/m scores (DeepSeek-V3)
    budgeted        eps, share of the top-k score mass that a token may lose to visit fewer ranks
    pruned          eps, as budgeted, but experts elsewhere are dropped, not replaced
    priced          what a rank must add to be visited, a share of the top-k sum of squared scores
"""

import torch
from torch import Tensor, nn

from c2r.errors import PlanError
from c2r.ops.constrained_topk import allowed_experts, choose_among, choose_constrained
from c2r.planning import LayerPlan
from c2r.routing.ranks import RankOptions, best_ranks, rank_options
from c2r.traces import ScoreKind, score_mass

_CANDIDATES_PER_EXPERT = 3


class RoutingPolicy(nn.Module):
    """Chooses k experts per token from a router's selection scores.

    `is_unconstrained` tells that the choice is plain top-k: callers then keep the model's own
    top-k call, so that not even ties differ. `drops_experts` tells that fewer than k experts may
    be used: the place of a dropped one then repeats the expert in column 0.
    """

    is_unconstrained = False
    drops_experts = False

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """Expert ids `[..., k]` int64 for scores `[..., E]`, column 0 the best-scored of them.

        `blocked` `[..., E]` bool marks experts that the model's own group limit excludes; they are
        chosen only where fewer than k others exist.
        """
        raise NotImplementedError

    def free_experts(self, num_free: int) -> None:
        """Lets the last `num_free` experts, which compute nothing, join any choice."""


class TopKPolicy(RoutingPolicy):
    """The k best-scored experts."""

    is_unconstrained = True

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        return scores.detach().topk(k, dim=-1).indices


class C2RPolicy(RoutingPolicy):
    """The top-1 freely, the others among its listed partners."""

    def __init__(self, layer: LayerPlan) -> None:
        super().__init__()
        allowed = allowed_experts(layer.partners, layer.top_t)
        self.is_unconstrained = bool(allowed.all())
        self.register_buffer("allowed", allowed, persistent=False)
        self.allowed: Tensor

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        return choose_constrained(scores, self.allowed, k, blocked)

    def free_experts(self, num_free: int) -> None:
        """See `RoutingPolicy.free_experts`."""
        self.allowed[:, -num_free:] = True


class RankPolicy(RoutingPolicy):
    """The best-scored experts on a few ranks, chosen for each token."""

    def __init__(self, layer: LayerPlan, score_kind: ScoreKind) -> None:
        super().__init__()
        placement = torch.as_tensor(layer.placement, dtype=torch.int64)
        self.num_ranks = int(placement.max()) + 1
        self.strength = layer.strength
        self.score_kind = score_kind
        self.is_unconstrained = self.strength == 0
        self.register_buffer("placement", placement.clone(), persistent=False)
        self.placement: Tensor

    def free_experts(self, num_free: int) -> None:
        """See `RoutingPolicy.free_experts`."""
        self.placement[-num_free:] = self.num_ranks

    def ranks(self, mass: Tensor, k: int, usable: Tensor) -> Tensor:
        """Which ranks each token may use: `[tokens, ranks]` bool.

        `mass` `[tokens, E]` of the scores; `usable` `[tokens or 1, E]` bool, not blocked.
        """
        raise NotImplementedError

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        return choose_among(scores, self._allowed(scores, k, blocked), k, blocked)

    def _allowed(self, scores: Tensor, k: int, blocked: Tensor | None) -> Tensor:
        """Experts on the ranks that each token may use, `[..., E]` bool."""
        mass = score_mass(scores.detach().reshape(-1, scores.shape[-1]), self.score_kind)
        if blocked is None:
            usable = torch.ones_like(self.placement, dtype=torch.bool)[None]
        else:
            usable = ~blocked.reshape(-1, scores.shape[-1])
        granted = self.ranks(mass, k, usable).float()
        members = self._members()
        reach = torch.addmm(members[-1], granted, members[:-1])  # quicker than a gather
        return reach.bool().view_as(scores)

    def _members(self) -> Tensor:
        """Experts of each rank, and in the last row those on every rank: `[ranks + 1, E]`, 0, 1."""
        every_rank = torch.arange(self.num_ranks + 1, device=self.placement.device)
        return (every_rank[:, None] == self.placement).float()


class GroupLimitedPolicy(RankPolicy):
    """The best m ranks of each token by the sums of their top k/m masses."""

    def __init__(self, layer: LayerPlan, score_kind: ScoreKind) -> None:
        super().__init__(layer, score_kind)
        self.is_unconstrained = self.strength >= self.num_ranks
        experts = [layer.placement == rank for rank in range(self.num_ranks)]
        size = max(int(own.sum()) for own in experts)
        slots = torch.full((self.num_ranks, size), layer.num_experts)
        for rank, own in enumerate(experts):
            slots[rank, : int(own.sum())] = torch.as_tensor(own).nonzero().flatten()
        self.register_buffer("slots", slots, persistent=False)
        self.slots: Tensor

    def ranks(self, mass: Tensor, k: int, usable: Tensor) -> Tensor:
        """See `RankPolicy.ranks`."""
        return best_ranks(mass, self.slots, k, int(self.strength))


class BudgetedPolicy(RankPolicy):
    """The fewest ranks that keep (1 - eps) of each token's top-k score mass."""

    def ranks(self, mass: Tensor, k: int, usable: Tensor) -> Tensor:
        """See `RankPolicy.ranks`."""
        return self.options(mass, k, usable).fewest(self.strength)

    def options(self, mass: Tensor, k: int, usable: Tensor) -> RankOptions:
        """The sets of ranks that hold k experts, and what each would keep."""
        num_candidates = min(_CANDIDATES_PER_EXPERT * k, mass.shape[-1])
        options = rank_options(mass, self.placement, self.num_ranks, k, num_candidates)
        return options.filling(k, usable.float() @ self._members().T)


class PricedPolicy(BudgetedPolicy):
    """The ranks whose experts are worth the price of visiting them.

    Squared masses, as the energy of what is lost: errors of several experts add up like that where
    their outputs are unlike. One price for all tokens takes copies from those that mind least.
    """

    def ranks(self, mass: Tensor, k: int, usable: Tensor) -> Tensor:
        """See `RankPolicy.ranks`."""
        return self.options(mass.square(), k, usable).worthwhile(self.strength)


class PrunedPolicy(RankPolicy):
    """Of the k best-scored experts those on the fewest ranks that keep (1 - eps) of their mass."""

    def __init__(self, layer: LayerPlan, score_kind: ScoreKind) -> None:
        super().__init__(layer, score_kind)
        self.drops_experts = not self.is_unconstrained

    def ranks(self, mass: Tensor, k: int, usable: Tensor) -> Tensor:
        """See `RankPolicy.ranks`."""
        return rank_options(mass, self.placement, self.num_ranks, k, k).fewest(self.strength)

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        ids = scores.detach().topk(k, dim=-1).indices
        kept = self._allowed(scores, k, None).gather(-1, ids)
        best = ids.gather(-1, kept.byte().argmax(-1, keepdim=True))
        return ids.where(kept, best)


_RANK_POLICIES: dict[str, type[RankPolicy]] = {
    "group_limited": GroupLimitedPolicy,
    "budgeted": BudgetedPolicy,
    "pruned": PrunedPolicy,
    "priced": PricedPolicy,
}


def make_policy(layer: LayerPlan, score_kind: ScoreKind = ScoreKind.PROBABILITIES) -> RoutingPolicy:
    """The policy that a layer plan names, for a router whose scores are of `score_kind`.

    Raises `PlanError` for an unknown name.
    """
    if layer.policy == "top_k":
        return TopKPolicy()
    if layer.policy in ("c2r", "c2r_placed"):
        return C2RPolicy(layer)
    if layer.policy in _RANK_POLICIES:
        return _RANK_POLICIES[layer.policy](layer, score_kind)
    raise PlanError(f"unknown routing policy {layer.policy!r}; upgrade c2r, or plan again")
