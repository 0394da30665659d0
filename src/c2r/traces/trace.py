"""Routing traces: per MoE layer, the experts that each token chose and the scores it chose by."""

from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor

from c2r.ops.rank_choice import mass_of


class ScoreKind(StrEnum):
    """What a router's selection scores are.

    `LOGITS`: any real numbers, turned into weights after the choice (Mixtral's cousins such as
    GPT-OSS). `PROBABILITIES`: a softmax over the experts. `GATES`: one independent positive gate
    per expert (DeepSeek-V3's sigmoid, its correction bias added).
    """

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    GATES = "gates"


def score_mass(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Selection scores `[..., E]` as non-negative float masses of the same shape.

    Logits become their softmax; probabilities and gates stay, with whatever a bias or a group
    limit made negative or -inf counted as 0.
    """
    return mass_of(scores, kind is ScoreKind.LOGITS)


def used_places(expert_ids: Tensor) -> Tensor:
    """Which of each token's k places hold an expert: bool, of the shape of the ids `[..., k]`.

    A policy that drops an expert repeats in its place the one in column 0: of `[3, 3, 5]` the
    second place is empty.
    """
    kept = expert_ids != expert_ids[..., :1]
    kept[..., 0] = True
    return kept


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerTrace:
    """What one router decided for the tokens of one batch, padding left out.

    `name` is the router's module path. `expert_ids` `[tokens, k]` int64 holds distinct experts,
    column 0 the top-1 (the argmax of what the router selects by); only where a policy dropped
    experts is column 0 the best that is kept, and repeated, see `used_places`. `weights`
    `[tokens, k]` are the factors of the experts' outputs, in the same order, None where the model
    does not show them.
    `scores` `[tokens, E]` are the selection scores, of kind `score_kind`.
    """

    name: str
    expert_ids: Tensor
    weights: Tensor | None
    scores: Tensor
    score_kind: ScoreKind

    @property
    def num_tokens(self) -> int:
        """Tokens in the trace."""
        return self.expert_ids.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingTrace:
    """The decisions of every MoE layer, in the model's order, for one batch."""

    layers: tuple[LayerTrace, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the trace; a layer that did not run has none of them."""
        return max(layer.num_tokens for layer in self.layers)

    def of_tokens(self, kept: Tensor) -> "RoutingTrace":
        """The tokens that `kept` `[tokens]` bool tells, scores detached, weights left out."""
        layers = (
            replace(
                layer,
                expert_ids=layer.expert_ids[kept],
                weights=None,
                scores=layer.scores[kept].detach(),
            )
            for layer in self.layers
        )
        return RoutingTrace(layers=tuple(layers))
