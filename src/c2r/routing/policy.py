"""Policies as modules without parameters, so that their tables follow the model's device.

Of each policy, `LayerPlan.strength` is the one number:

    top_k           none; the k best-scored experts
    c2r             T, partners that may accompany the top-1 (Zhang et al., NAACL 2025)
    c2r_placed      m, ranks whose experts may accompany the top-1
    group_limited   m, ranks per token by the sums of their top k/m scores (DeepSeek-V3)
    budgeted        eps, share of the top-k score mass that a token may lose to visit fewer ranks
"""

import torch
from torch import Tensor, nn

from c2r.errors import PlanError
from c2r.ops.constrained_topk import allowed_experts, choose_among, choose_constrained
from c2r.planning import LayerPlan
from c2r.routing.ranks import best_ranks, fewest_ranks
from c2r.traces import ScoreKind, score_mass


class RoutingPolicy(nn.Module):
    """Chooses k experts per token from a router's selection scores.

    `is_unconstrained` tells that the choice is plain top-k: callers then keep the model's own
    top-k call, so that not even ties differ.
    """

    is_unconstrained = False

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """Expert ids `[..., k]` int64 for scores `[..., E]`, column 0 the best-scored.

        `blocked` `[..., E]` bool marks experts that the model's own group limit excludes; they are
        chosen only where fewer than k others exist.
        """
        raise NotImplementedError


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


class RankPolicy(RoutingPolicy):
    """The best-scored experts on a few ranks, chosen for each token."""

    def __init__(self, layer: LayerPlan, score_kind: ScoreKind) -> None:
        super().__init__()
        placement = torch.as_tensor(layer.placement, dtype=torch.int64)
        self.num_ranks = int(placement.max()) + 1
        self.strength = layer.strength
        self.score_kind = score_kind
        members = torch.arange(self.num_ranks)[:, None] == placement
        self.register_buffer("placement", placement, persistent=False)
        self.register_buffer("members", members, persistent=False)
        self.placement: Tensor
        self.members: Tensor

    def ranks(self, mass: Tensor, k: int) -> Tensor:
        """Which ranks each token may use: `[tokens, ranks]` bool for masses `[tokens, E]`."""
        raise NotImplementedError

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        flat = scores.detach().flatten(0, -2)
        granted = self.ranks(score_mass(flat, self.score_kind), k)
        allowed = (granted.float() @ self.members.float()).bool().view_as(scores)
        return choose_among(scores, allowed, k, blocked)


class GroupLimitedPolicy(RankPolicy):
    """The best m ranks of each token by the sums of their top k/m masses."""

    def ranks(self, mass: Tensor, k: int) -> Tensor:
        """See `RankPolicy.ranks`."""
        return best_ranks(mass, self.members, k, int(self.strength))


class BudgetedPolicy(RankPolicy):
    """The fewest ranks that keep (1 - eps) of each token's top-k score mass."""

    def ranks(self, mass: Tensor, k: int) -> Tensor:
        """See `RankPolicy.ranks`."""
        return fewest_ranks(mass, self.placement, self.num_ranks, k, self.strength)


def make_policy(layer: LayerPlan, score_kind: ScoreKind = ScoreKind.PROBABILITIES) -> RoutingPolicy:
    """The policy that a layer plan names, for a router whose scores are of `score_kind`.

    Raises `PlanError` for an unknown name.
    """
    if layer.policy == "top_k":
        return TopKPolicy()
    if layer.policy in ("c2r", "c2r_placed"):
        return C2RPolicy(layer)
    if layer.policy == "group_limited":
        return GroupLimitedPolicy(layer, score_kind)
    if layer.policy == "budgeted":
        return BudgetedPolicy(layer, score_kind)
    raise PlanError(f"unknown routing policy {layer.policy!r}; upgrade c2r, or plan again")
