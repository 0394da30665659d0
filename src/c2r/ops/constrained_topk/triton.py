"""The constrained choice in one pass over the scores: a block of tokens per program.

Among equal scores the lower id is chosen, and NaN counts as highest. The reference leaves both to
`torch.topk`. Scores wider than float32 are left to the reference.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from c2r.ops.constrained_topk import reference
from c2r.ops.constrained_topk.reference import ScoreFunction
from c2r.ops.launching import expert_of, launch, load_scores, score_of, sort_keys, store_best

_TILE = 2048
"""Scores per program: 16 a thread of four warps. Chosen by hand: larger tiles take more registers,
smaller ones start more programs. Nothing spills on sm_90 (benchmarks/kernel_resources.py)."""


def choose_constrained(
    scores: Tensor, allowed: Tensor, k: int, blocked: Tensor | None = None
) -> Tensor:
    """See the reference."""
    if scores.dtype == torch.float64:
        return reference.choose_constrained(scores, allowed, k, blocked)
    return _choose(scores, allowed, k, blocked, is_table=True)


def choose_among(
    scores: Tensor,
    allowed: Tensor,
    k: int,
    blocked: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """See the reference."""
    if scores.dtype == torch.float64:
        return reference.choose_among(scores, allowed, k, blocked, first)
    return _choose(scores, allowed.expand_as(scores), k, blocked, first)


def route_constrained(
    logits: Tensor,
    allowed: Tensor,
    k: int,
    score_function: ScoreFunction = "softmax",
    normalized: bool = False,
) -> tuple[Tensor, Tensor]:
    """See the reference."""
    if logits.dtype == torch.float64:
        return reference.route_constrained(logits, allowed, k, score_function, normalized)
    ids, weights = _Route.apply(logits, allowed, k, score_function == "softmax", normalized)
    return ids, weights


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, allowed: Tensor, k: int, is_softmax: bool, normalized: bool
    ) -> tuple[Tensor, Tensor]:
        logits = logits.contiguous()
        num_tokens, num_experts = logits.shape
        ids = torch.empty(num_tokens, k, dtype=torch.int64, device=logits.device)
        weights = torch.empty(num_tokens, k, dtype=torch.float32, device=logits.device)
        tokens, experts = _tile(num_experts)
        launch(
            _route, (triton.cdiv(num_tokens, tokens),),
            logits, allowed.contiguous(), ids, weights, num_tokens, num_experts,
            K=k, PLACES=triton.next_power_of_2(k), IS_SOFTMAX=is_softmax, NORMALIZED=normalized,
            TOKENS=tokens, EXPERTS=experts, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(logits, ids, weights)
        ctx.mark_non_differentiable(ids)
        ctx.is_softmax, ctx.normalized = is_softmax, normalized
        return ids, weights

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, ids, weights = ctx.saved_tensors
        (num_tokens, num_experts), k = logits.shape, ids.shape[1]
        grad_logits = torch.empty_like(logits)
        tokens, experts = _tile(num_experts)
        launch(
            _route_backward, (triton.cdiv(num_tokens, tokens),),
            logits, ids, weights, grad.contiguous(), grad_logits, num_tokens, num_experts,
            K=k, IS_SOFTMAX=ctx.is_softmax, NORMALIZED=ctx.normalized,
            TOKENS=tokens, EXPERTS=experts, num_warps=4,
        )  # fmt: skip
        return grad_logits, None, None, None, None


def _choose(
    scores: Tensor,
    allowed: Tensor,
    k: int,
    blocked: Tensor | None,
    first: Tensor | None = None,
    is_table: bool = False,
) -> Tensor:
    num_experts = scores.shape[-1]
    rows = scores.detach().reshape(-1, num_experts).contiguous()
    ids = torch.empty(*scores.shape[:-1], k, dtype=torch.int64, device=scores.device)
    tokens, experts = _tile(num_experts)
    launch(
        _choose_k, (triton.cdiv(len(rows), tokens),),
        rows, allowed.contiguous(),
        rows if blocked is None else blocked.expand_as(scores).contiguous(),
        rows if first is None else first.contiguous(),
        ids, len(rows), num_experts,
        K=k, IS_TABLE=is_table, HAS_BLOCKED=blocked is not None, HAS_FIRST=first is not None,
        TOKENS=tokens, EXPERTS=experts, num_warps=4,
    )  # fmt: skip
    return ids


def _tile(num_experts: int) -> tuple[int, int]:
    """Tokens and experts of the tile of a program."""
    experts = triton.next_power_of_2(num_experts)
    return max(1, _TILE // experts), experts


@triton.jit
def _beside_best(score, allowed, experts, inside, num_experts):
    """Keys of the experts allowed beside the best-scored one, which comes first."""
    # Without tiers first, to find the top-1; then with tiers from its row of `allowed`.
    keys = tl.where(inside, sort_keys(score, tl.zeros_like(experts), experts), -1)
    first = expert_of(tl.max(keys, axis=1))[:, None]
    is_allowed = tl.load(allowed + first * num_experts + experts, mask=inside, other=0) != 0
    tiers = tl.where(experts == first, 2, is_allowed.to(tl.int32))
    return tl.where(inside, sort_keys(score, tiers, experts), -1)


@triton.jit
def _choose_k(
    scores, allowed, blocked, first, ids, num_tokens, num_experts,
    K: tl.constexpr, IS_TABLE: tl.constexpr, HAS_BLOCKED: tl.constexpr, HAS_FIRST: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Tiers: the first, allowed, not allowed; blocked ones of both below."""
    tokens, experts, score = load_scores(scores, num_tokens, num_experts, TOKENS, EXPERTS)
    inside = (tokens < num_tokens) & (experts < num_experts)
    at = tokens * num_experts + experts
    if IS_TABLE:
        keys = _beside_best(score, allowed, experts, inside, num_experts)
        tiers = (keys >> 48).to(tl.int32)
    else:
        tiers = (tl.load(allowed + at, mask=inside, other=0) != 0).to(tl.int32)
        if HAS_FIRST:
            best = tl.load(first + tokens, mask=tokens < num_tokens, other=0)
            tiers = tl.where(experts == best, 2, tiers)
    if HAS_BLOCKED:
        is_blocked = tl.load(blocked + at, mask=inside, other=0) != 0
        tiers = tl.where((tiers < 2) & is_blocked, tiers, tiers + 2)
    keys = tl.where(inside, sort_keys(score, tiers, experts), -1)
    store_best(ids, keys, tokens, num_tokens, K)


@triton.jit
def _route(
    logits, allowed, ids, weights, num_tokens, num_experts,
    K: tl.constexpr, PLACES: tl.constexpr, IS_SOFTMAX: tl.constexpr, NORMALIZED: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Ids and weights of a block of tokens; only the chosen scores become weights."""
    # Normalised, the softmax's own denominator cancels, so that the sum over all is not needed.
    tokens, experts, score = load_scores(logits, num_tokens, num_experts, TOKENS, EXPERTS)
    inside = (tokens < num_tokens) & (experts < num_experts)
    keys = _beside_best(score, allowed, experts, inside, num_experts)
    places = tl.arange(0, PLACES)[None, :]
    chosen = tl.zeros([TOKENS, PLACES], tl.float32)
    for place in range(K):
        best = tl.max(keys, axis=1)[:, None]
        tl.store(ids + tokens * K + place, expert_of(best), mask=tokens < num_tokens)
        chosen = tl.where(places == place, score_of(best), chosen)
        keys = tl.where(keys == best, -1, keys)
    if IS_SOFTMAX:
        highest = tl.max(score, axis=1)[:, None]
        weight = tl.exp(chosen - highest)
        if not NORMALIZED:
            weight /= tl.sum(tl.exp(score - highest), axis=1)[:, None]
    else:
        weight = 1 / (1 + tl.exp(-chosen))
    if NORMALIZED:
        weight /= tl.sum(tl.where(places < K, weight, 0.0), axis=1)[:, None]
    is_place = (tokens < num_tokens) & (places < K)
    tl.store(weights + tokens * K + places, weight, mask=is_place)


@triton.jit
def _route_backward(
    logits, ids, weights, grad, grad_logits, num_tokens, num_experts,
    K: tl.constexpr, IS_SOFTMAX: tl.constexpr, NORMALIZED: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Gradients of all logits, from those of the chosen weights; scores are computed again."""
    tokens, experts, score = load_scores(logits, num_tokens, num_experts, TOKENS, EXPERTS)
    inside = (tokens < num_tokens) & (experts < num_experts)
    is_token = tokens < num_tokens
    # With w = p / sum p over the chosen, dL/ds_j = w_j (g_j - sum_i g_i w_i); `mean` is that sum.
    grads = tl.zeros([TOKENS, EXPERTS], tl.float32)  # of the chosen experts' weights
    weight = tl.zeros([TOKENS, EXPERTS], tl.float32)
    mean = tl.zeros([TOKENS, 1], tl.float32)  # of the gradients, weighted
    for place in range(K):
        at = tokens * K + place
        is_chosen = tl.load(ids + at, mask=is_token, other=-1) == experts
        its_grad = tl.load(grad + at, mask=is_token, other=0.0)
        its_weight = tl.load(weights + at, mask=is_token, other=0.0)
        grads = tl.where(is_chosen, its_grad, grads)
        weight = tl.where(is_chosen, its_weight, weight)
        mean += its_grad * its_weight
    if IS_SOFTMAX:
        if NORMALIZED:
            result = weight * (grads - mean)
        else:
            powers = tl.exp(score - tl.max(score, axis=1)[:, None])
            result = powers / tl.sum(powers, axis=1)[:, None] * (grads - mean)
    else:
        gate = 1 / (1 + tl.exp(-score))
        result = weight * (1 - gate) * (grads - mean if NORMALIZED else grads)
    at = tokens * num_experts + experts
    tl.store(grad_logits + at, result.to(grad_logits.dtype.element_ty), mask=inside)
