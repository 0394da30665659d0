"""Plain torch reference of the C2R choice (Zhang et al., NAACL 2025, arXiv 2504.01337)."""

from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from c2r.errors import PlanError
from c2r.ops.limits import check_top_t

ScoreFunction = Literal["softmax", "sigmoid"]


def allowed_experts(partners: ArrayLike | Tensor, top_t: int) -> Tensor:
    """Which experts may accompany each top-1 expert.

    Args:
        partners: `[E, >= top_t]` integers, closest collaborators of each expert first.
        top_t: how many of them count.

    Returns:
        `[E, E]` bool, row i true for i itself and its first `top_t` partners.
    """
    lists = torch.as_tensor(partners, dtype=torch.int64)[:, :top_t]
    allowed = torch.eye(len(lists), dtype=torch.bool, device=lists.device)
    return allowed.scatter_(1, lists, True)


def choose_constrained(
    scores: Tensor, allowed: Tensor, k: int, blocked: Tensor | None = None
) -> Tensor:
    """Top-1 by score, the others the best-scored among those allowed beside it.

    Of four experts scored `[.4, .3, .2, .1]`, with expert 0 allowed only beside 2 and 3, two are
    chosen: `[0, 2]`.

    Args:
        scores: `[..., E]` selection scores. -inf is an ordinary, worst score.
        allowed: `[E, E]` bool from `allowed_experts`, at least k in a row.
        k: experts per token.
        blocked: `[..., E]` bool, experts that a group limit of the model excludes. The limit wins:
            where fewer than k allowed experts are left, the best-scored others that are not
            blocked fill up.

    Returns:
        `[..., k]` int64, column 0 the top-1, the others by descending score.
    """
    top1 = scores.detach().argmax(-1, keepdim=True)
    return choose_among(scores, allowed[top1.squeeze(-1)], k, blocked, first=top1)


def choose_among(
    scores: Tensor,
    allowed: Tensor,
    k: int,
    blocked: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """The k best-scored experts among those that each token is allowed.

    Args:
        scores: `[..., E]` selection scores. -inf is an ordinary, worst score.
        allowed: `[..., E]` bool, at least k in a row.
        k: experts per token.
        blocked: `[..., E]` bool, as in `choose_constrained`.
        first: `[..., 1]` int64, an expert that comes first even where others tie with it.

    Returns:
        `[..., k]` int64, by descending score.
    """
    scores = scores.detach()
    if blocked is None:
        # An allowed score of -inf must still beat what is not allowed: it becomes the lowest float.
        lowest = torch.finfo(scores.dtype).min
        key = scores.clamp(min=lowest).masked_fill_(~allowed, -torch.inf)
    else:
        # By rank in the order of scores instead of by score: small whole numbers leave room for
        # penalties of E and 2 E, so that all allowed come before others, and blocked ones last.
        order = scores.argsort(dim=-1, descending=True, stable=True)
        position = torch.empty_like(order).scatter_(
            -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
        )
        num_experts = scores.shape[-1]
        key = -(position + num_experts * ~allowed + 2 * num_experts * blocked).float()
    if first is not None:
        key = key.scatter(-1, first, torch.inf)
    return key.topk(k, dim=-1, sorted=True).indices


def route_constrained(
    logits: Tensor,
    allowed: Tensor,
    k: int,
    score_function: ScoreFunction = "softmax",
    normalized: bool = False,
) -> tuple[Tensor, Tensor]:
    """The whole router behind its linear map: scores, the constrained choice, weights.

    The choice is `choose_constrained` of the logits, which their softmax and sigmoid order alike.

    Args:
        logits: `[tokens, E]` floats.
        allowed: as in `choose_constrained`.
        k: experts per token.
        score_function: what the weights are, over all experts.
        normalized: whether each token's weights are divided by their sum.

    Returns:
        Expert ids `[tokens, k]` int64 and weights `[tokens, k]` float32, differentiable in the
        logits.
    """
    ids = choose_constrained(logits, allowed, k)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = precise.softmax(-1) if score_function == "softmax" else precise.sigmoid()
    weights = scores.gather(-1, ids)
    return ids, weights / weights.sum(-1, keepdim=True) if normalized else weights


def validate_lists(num_experts: int, partners: ArrayLike | Tensor, k: int, top_t: int) -> Tensor:
    """`partners` as a tensor. Raises `PlanError` unless they fit E, k and T."""
    check_top_t(top_t, num_experts, k)
    lists = torch.as_tensor(partners)
    if lists.ndim != 2 or lists.shape[0] != num_experts or lists.shape[1] < top_t:
        raise PlanError(
            f"partner lists of shape {list(lists.shape)} do not fit {num_experts} experts and "
            f"T = {top_t}; they must be [{num_experts}, {top_t} or more]"
        )
    return lists
