"""Policies as modules without parameters, so that their tables follow the model's device."""

from torch import Tensor, nn

from c2r.errors import PlanError
from c2r.ops.constrained_topk import allowed_experts, choose_constrained
from c2r.planning import LayerPlan


class RoutingPolicy(nn.Module):
    """Chooses k experts per token from a router's selection scores.

    `is_unconstrained` tells that the choice is plain top-k: callers then keep the model's own
    top-k call, so that not even ties differ.
    """

    is_unconstrained = False

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """Expert ids `[..., k]` int64 for scores `[..., E]`, column 0 the top-1.

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
    """The published rule: the top-1 freely, the others among its first T partners."""

    def __init__(self, layer: LayerPlan) -> None:
        super().__init__()
        self.is_unconstrained = layer.top_t == layer.num_experts - 1
        allowed = allowed_experts(layer.partners, layer.top_t)
        self.register_buffer("allowed", allowed, persistent=False)
        self.allowed: Tensor

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        """See `RoutingPolicy.forward`."""
        return choose_constrained(scores, self.allowed, k, blocked)


def make_policy(layer: LayerPlan) -> RoutingPolicy:
    """The policy that a layer plan names. Raises `PlanError` for an unknown name."""
    if layer.policy == "top_k":
        return TopKPolicy()
    if layer.policy == "c2r":
        return C2RPolicy(layer)
    raise PlanError(f"unknown routing policy {layer.policy!r}; this c2r knows c2r and top_k")
