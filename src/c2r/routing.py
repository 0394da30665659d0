"""Policies as modules without parameters, so that their tables follow the model's device.

`LayerPlan.strength` is the one number of each policy:

    top_k           none; the k best-scored experts
    c2r             T, partners that may accompany the top-1 (Zhang et al., NAACL 2025)
    c2r_placed      m, ranks whose experts may accompany the top-1
    group_limited   m, ranks per token by the sums of their top k/m scores (DeepSeek-V3)
    budgeted        eps, share of the top-k score mass that a token may lose to visit fewer ranks
    pruned          eps, as budgeted, but experts elsewhere are dropped, not replaced
    priced          share of the top-k sum of squared scores that each visited rank must add
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from c2r.errors import PlanError
from c2r.ops.constrained_topk import allowed_experts, choose_constrained
from c2r.ops.rank_choice import Criterion, RankRule, RankTables, choose_on_ranks, members_of
from c2r.plans import LayerPlan
from c2r.traces import ScoreKind


class RoutingPolicy(nn.Module, ABC):
    """Chooses k experts per token from a router's selection scores.

    If `is_unconstrained`, the choice is plain top-k: callers then keep the model's own
    top-k call, so that not even ties differ. If `drops_experts`, fewer than k experts may
    be used: the place of a dropped one then repeats the expert in column 0.
    """

    is_unconstrained = False
    drops_experts = False

    @abstractmethod
    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """Expert ids `[..., k]` int64 for scores `[..., E]`, column 0 the best-scored of them.

        `blocked` `[..., E]` bool marks experts that the model's own group limit excludes; they are
        chosen only where fewer than k others exist.
        """

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
    """The best-scored experts on a few ranks, chosen for each token by a `RankRule`."""

    def __init__(self, layer: LayerPlan, score_kind: ScoreKind) -> None:
        super().__init__()
        tables = RankTables.of(torch.tensor(layer.placement, dtype=torch.int64))
        sizes = tables.placement.bincount()
        self.rule = RankRule(
            criterion=Criterion(layer.policy),
            strength=layer.strength,
            num_ranks=len(sizes),
            smallest_rank=int(sizes.min()),
            is_logits=score_kind is ScoreKind.LOGITS,
        )
        self.is_unconstrained = self.rule.is_unconstrained
        self.drops_experts = not self.is_unconstrained and (self.rule.criterion is Criterion.PRUNED)
        for name, table in tables._asdict().items():
            self.register_buffer(name, table, persistent=False)

    @property
    def tables(self) -> RankTables:
        """Where the experts are, on the policy's device."""
        return RankTables(*(getattr(self, name) for name in RankTables._fields))

    def free_experts(self, num_free: int) -> None:
        """See `RoutingPolicy.free_experts`."""
        placement = self.tables.placement
        placement[-num_free:] = self.rule.num_ranks
        self.members = members_of(placement, self.rule.num_ranks)

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        rows = scores.detach().reshape(-1, scores.shape[-1])
        blocked = None if blocked is None else blocked.reshape(rows.shape)
        ids = choose_on_ranks(rows, self.tables, k, self.rule, blocked)
        return ids.view(*scores.shape[:-1], k)


def make_policy(layer: LayerPlan, score_kind: ScoreKind = ScoreKind.PROBABILITIES) -> RoutingPolicy:
    """The policy that a layer plan names, for a router whose scores are of `score_kind`.

    Raises `PlanError` for an unknown name.
    """
    if layer.policy == "top_k":
        return TopKPolicy()
    if layer.policy in ("c2r", "c2r_placed"):
        return C2RPolicy(layer)
    if layer.policy in list(Criterion):
        return RankPolicy(layer, score_kind)
    raise PlanError(f"unknown routing policy {layer.policy!r}; upgrade c2r, or plan again")
