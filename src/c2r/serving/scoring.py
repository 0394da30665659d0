"""How a router scores and weighs its experts, with the choice between left to a policy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from c2r.routing import RoutingPolicy
from c2r.traces import ScoreKind, used_places


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scoring:
    """The arithmetic of a router around its choice.

    Attributes:
        function: `"softmax"` over the experts, or `"sigmoid"` of each.
        renormalize: the weights of a token's experts add up to 1.
        scaling_factor: what the weights are multiplied by after that.
        bias: `[E]` added to the scores for the choice only (DeepSeek-V3); None without.
        num_groups: groups of experts that the choice is limited by; 1 for no limit.
        num_chosen_groups: groups that a token may choose from.
    """

    function: str
    renormalize: bool
    scaling_factor: float = 1.0
    bias: Tensor | None = None
    num_groups: int = 1
    num_chosen_groups: int = 1

    @property
    def score_kind(self) -> ScoreKind:
        """What `selection` gives, as policies name it."""
        return ScoreKind.PROBABILITIES if self.function == "softmax" else ScoreKind.GATES

    def route(self, logits: Tensor, k: int, policy: RoutingPolicy) -> tuple[Tensor, Tensor]:
        """Weights `[tokens, k]` float32 and expert ids `[tokens, k]` int64.

        Shapes depend on nothing but the arguments' and no value is read back, so that the call can
        be captured in a CUDA graph.

        Args:
            logits: `[tokens, E]`, the router's output.
            k: experts per token.
            policy: chooses them.
        """
        scores = self._scores(logits.float())
        selection = scores if self.bias is None else scores + self.bias
        blocked = self._blocked(selection)
        if blocked is not None:
            selection = selection.masked_fill(blocked, -torch.inf)
        ids = policy(selection, k, blocked)
        weights = scores.gather(-1, ids)
        if policy.drops_experts:
            weights = weights.masked_fill(~used_places(ids), 0.0)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights if self.scaling_factor == 1 else weights * self.scaling_factor, ids

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.function == "softmax" else logits.sigmoid()

    def _blocked(self, selection: Tensor) -> Tensor | None:
        """`[tokens, E]` bool, experts outside a token's best groups; None without a limit.

        A group counts by its best expert, behind a bias by its two best (DeepSeek-V2, -V3).
        """
        if self.num_groups <= self.num_chosen_groups:
            return None
        groups = selection.view(*selection.shape[:-1], self.num_groups, -1)
        best = min(2 if self.bias is not None else 1, groups.shape[-1])
        value = groups.topk(best, dim=-1).values.sum(-1)
        chosen = value.topk(self.num_chosen_groups, dim=-1).indices
        outside = torch.ones_like(value, dtype=torch.bool).scatter(-1, chosen, False)
        return outside.unsqueeze(-1).expand_as(groups).flatten(-2)
