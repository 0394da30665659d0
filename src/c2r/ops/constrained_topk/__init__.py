"""The collaboration-constrained choice of k experts per token."""

from numpy.typing import ArrayLike
from torch import Tensor

from c2r.ops.backend import by_device
from c2r.ops.constrained_topk import reference
from c2r.ops.constrained_topk.reference import ScoreFunction, allowed_experts, validate_lists

choose_among = by_device(reference.choose_among)
choose_constrained = by_device(reference.choose_constrained)
route_constrained = by_device(reference.route_constrained)


def constrained_topk(
    scores: Tensor, partners: ArrayLike | Tensor, *, k: int, top_t: int
) -> tuple[Tensor, Tensor]:
    """The C2R choice: the top-1 expert freely, the other k - 1 among its first T partners.

    With `top_t = E - 1` this is plain top-k. Gradients reach `scores` through the second result.

    Args:
        scores: `[..., E]` selection scores, any float type.
        partners: `[E, >= top_t]` integers, the closest collaborators of each expert, closest
            first, without the expert itself.
        k: experts per token.
        top_t: T, how many partners count; k - 1 <= T <= E - 1.

    Returns:
        Expert ids `[..., k]` int64, column 0 the top-1, the others by descending score; and the
        scores of those experts `[..., k]`.

    Raises:
        PlanError: T or the lists do not fit E and k.
    """
    lists = validate_lists(scores.shape[-1], partners, k, top_t).to(scores.device)
    if top_t == scores.shape[-1] - 1:  # the model's own call: not even ties may differ
        ids = scores.detach().topk(k, dim=-1).indices
    else:
        ids = choose_constrained(scores, allowed_experts(lists, top_t), k)
    return ids, scores.gather(-1, ids)


__all__ = [
    "ScoreFunction",
    "allowed_experts",
    "choose_among",
    "choose_constrained",
    "constrained_topk",
    "route_constrained",
]
