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
from c2r.routing.ranks import (
    MAX_RANKS_TRIED_IN_FULL,
    RankOptions,
    best_ranks,
    rank_options,
)
from c2r.traces import ScoreKind, score_mass


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
        placement = torch.tensor(layer.placement, dtype=torch.int64)
        self.num_ranks = int(placement.max()) + 1
        self.smallest_rank = int(placement.bincount().min())
        self.strength = layer.strength
        self.score_kind = score_kind
        self.is_unconstrained = self.strength == 0
        self.register_buffer("placement", placement, persistent=False)
        self.placement: Tensor

    def free_experts(self, num_free: int) -> None:
        """See `RoutingPolicy.free_experts`."""
        self.placement[-num_free:] = self.num_ranks

    def ranks(self, scores: Tensor, k: int, blocked: Tensor | None) -> Tensor:
        """Which ranks each token may use: `[tokens, ranks]` bool for scores `[tokens, E]`."""
        raise NotImplementedError

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        rows = scores.detach().reshape(-1, scores.shape[-1])
        blocked = None if blocked is None else blocked.reshape(rows.shape)
        granted, members = self.ranks(rows, k, blocked), self.members()
        if blocked is None:
            ids = _best_on(rows, granted, members, k)
        else:
            allowed = torch.addmm(members[-1], granted.float(), members[:-1]).bool()
            ids = choose_among(rows, allowed, k, blocked)
        return ids.view(*scores.shape[:-1], k)

    def members(self) -> Tensor:
        """Experts of each rank, and in the last row those on every rank: `[ranks + 1, E]`, 0, 1."""
        every_rank = torch.arange(self.num_ranks + 1, device=self.placement.device)
        return (every_rank[:, None] == self.placement).float()


def _best_on(scores: Tensor, granted: Tensor, members: Tensor, k: int) -> Tensor:
    """The k best-scored experts on the granted ranks, `[tokens, k]`.

    One sum in place of a mask, which would take as long as half of the top-k.
    """
    lowest = torch.finfo(scores.dtype).min
    key = scores.clamp(min=lowest / 4)
    key.addmm_((~granted).to(key.dtype), members[:-1].to(key.dtype), alpha=lowest / 2)
    return key.topk(k, dim=-1).indices


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

    def ranks(self, scores: Tensor, k: int, blocked: Tensor | None) -> Tensor:
        """See `RankPolicy.ranks`."""
        is_logits = self.score_kind is ScoreKind.LOGITS
        mass = score_mass(scores, self.score_kind) if is_logits else scores.float()
        return best_ranks(mass, self.slots, k, int(self.strength))


class BudgetedPolicy(RankPolicy):
    """The fewest ranks that keep (1 - eps) of each token's top-k score mass."""

    def ranks(self, scores: Tensor, k: int, blocked: Tensor | None) -> Tensor:
        """See `RankPolicy.ranks`."""
        mass, experts = self.candidates(scores, k)
        return self.options(mass, experts, k, blocked).fewest(self.strength)

    def candidates(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Masses and ids of the best-scored experts, `[tokens, candidates]` each.

        Masses count relative to each other only, so the softmax of some logits will do.
        """
        per_expert = 3 if self.num_ranks <= MAX_RANKS_TRIED_IN_FULL else 2
        top = scores.topk(min(per_expert * k, scores.shape[-1]), dim=-1)
        return score_mass(top.values, self.score_kind), top.indices

    def options(self, mass: Tensor, experts: Tensor, k: int, blocked: Tensor | None) -> RankOptions:
        """The sets of ranks that hold k experts which are not blocked, and what each would keep."""
        options = rank_options(mass, experts, self.placement, self.num_ranks, k)
        if blocked is not None:
            return options.filling(k, (~blocked).float() @ self.members().T)
        if self.smallest_rank < k:
            return options.filling(k, self.members().sum(-1)[None])
        return options


class PricedPolicy(BudgetedPolicy):
    """The ranks whose experts are worth the price of visiting them.

    Squared masses, as the energy of what is lost: errors of several experts add up like that where
    their outputs are unlike. One price for all tokens takes copies from those that mind least.
    """

    def ranks(self, scores: Tensor, k: int, blocked: Tensor | None) -> Tensor:
        """See `RankPolicy.ranks`."""
        mass, experts = self.candidates(scores, k)
        return self.options(mass.square(), experts, k, blocked).worthwhile(self.strength)


class PrunedPolicy(RankPolicy):
    """Of the k best-scored experts those on the fewest ranks that keep (1 - eps) of their mass."""

    def __init__(self, layer: LayerPlan, score_kind: ScoreKind) -> None:
        super().__init__(layer, score_kind)
        self.drops_experts = not self.is_unconstrained

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        top = scores.detach().reshape(-1, scores.shape[-1]).topk(k, dim=-1)
        mass, ids = score_mass(top.values, self.score_kind), top.indices
        granted = rank_options(mass, ids, self.placement, self.num_ranks, k).fewest(self.strength)
        reach = torch.cat([granted, granted.new_ones(len(granted), 1)], dim=-1)
        kept = reach.gather(-1, self.placement[ids])
        best = ids.gather(-1, kept.byte().argmax(-1, keepdim=True))
        return ids.where(kept, best).view(*scores.shape[:-1], k)


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
