"""The choice of experts on few ranks in one pass over the scores: a block of tokens per program.

Among equal scores the lower id is chosen, among equal ranks the lower; the reference leaves both to
`torch.topk`. What a set of ranks keeps is summed in another order than by the reference, so that
choices may differ where a set misses or meets a budget by rounding. Left to the reference: more
than 64 ranks, scores wider than float32, and routers with a group limit of their own (`blocked`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from c2r.ops.launching import expert_of, launch, load_scores, score_of, sort_keys, store_best
from c2r.ops.rank_choice import reference
from c2r.ops.rank_choice.reference import MAX_RANKS_TRIED_IN_FULL, Criterion, RankRule, RankTables

_MAX_RANKS = 64  # a set of ranks is the bits of an int64
_TILE = 1024
"""Scores per program, half of `constrained_topk`'s: candidates and options take registers as well.
Chosen by hand; nothing spills on sm_90 (benchmarks/kernel_resources.py)."""


def choose_on_ranks(
    scores: Tensor,
    tables: RankTables,
    k: int,
    rule: RankRule,
    blocked: Tensor | None = None,
) -> Tensor:
    """See the reference."""
    is_left = blocked is not None or rule.num_ranks > _MAX_RANKS
    if is_left or scores.dtype == torch.float64:
        return reference.choose_on_ranks(scores, tables, k, rule, blocked)
    scores = scores.contiguous()
    num_tokens, num_experts = scores.shape
    ids = torch.empty(num_tokens, k, dtype=torch.int64, device=scores.device)
    if rule.is_group_limited:
        _choose_group_limited(scores, tables, ids, rule)
        return ids
    experts = triton.next_power_of_2(num_experts)
    tokens = max(1, _TILE // experts)
    num_candidates = rule.num_candidates(k, num_experts)
    is_tried_in_full = rule.num_ranks <= MAX_RANKS_TRIED_IN_FULL
    is_priced, drops = (rule.criterion is c for c in (Criterion.PRICED, Criterion.PRUNED))
    must_fill = rule.smallest_rank < k and not drops
    launch(
        _choose_on_ranks, (triton.cdiv(num_tokens, tokens),),
        scores, tables.placement, tables.members.sum(-1) if must_fill else tables.placement,
        ids, rule.strength if is_priced else rule.least_kept, num_tokens, num_experts,
        K=k, NUM_CANDIDATES=num_candidates, CANDIDATES=triton.next_power_of_2(num_candidates),
        NUM_RANKS=rule.num_ranks, RANKS=triton.next_power_of_2(rule.num_ranks + 1),
        NUM_OPTIONS=2**rule.num_ranks - 1 if is_tried_in_full else min(k, rule.num_ranks),
        ALL_SETS=is_tried_in_full, MUST_FILL=must_fill, IS_PRICED=is_priced, DROPS=drops,
        IS_LOGITS=rule.is_logits, TOKENS=tokens, EXPERTS=experts, num_warps=4,
    )  # fmt: skip
    return ids


def _choose_group_limited(scores: Tensor, tables: RankTables, ids: Tensor, rule: RankRule) -> None:
    (num_tokens, num_experts), k = scores.shape, ids.shape[1]
    experts_by_rank = tables.experts_by_rank
    ranks, places = (triton.next_power_of_2(size) for size in experts_by_rank.shape)
    experts = triton.next_power_of_2(num_experts)
    tokens = max(1, _TILE // 2 // max(experts, ranks * places))
    num_allowed = int(rule.strength)
    launch(
        _choose_on_best_ranks, (triton.cdiv(num_tokens, tokens),),
        scores, tables.placement, experts_by_rank.contiguous(), ids, num_tokens, num_experts,
        experts_by_rank.shape[1],
        K=k, NUM_ALLOWED=num_allowed, PER_RANK=-(-k // num_allowed), NUM_RANKS=rule.num_ranks,
        IS_LOGITS=rule.is_logits, TOKENS=tokens, EXPERTS=experts, RANKS=ranks, SLOTS=places,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def _is_on(granted, ranks, NUM_RANKS: tl.constexpr):
    """Whether ranks are in the sets `granted`, bit r for rank r; `NUM_RANKS` is in every set."""
    bit = (granted >> tl.minimum(ranks, NUM_RANKS - 1)) & 1
    return (bit == 1) | (ranks == NUM_RANKS)


@triton.jit
def _store_best_on(
    ids, granted, score, placement, tokens, experts, num_tokens, num_experts,
    K: tl.constexpr, NUM_RANKS: tl.constexpr,
):  # fmt: skip
    """Writes the K best-scored experts on the ranks `granted` `[TOKENS, 1]`."""
    is_expert = experts < num_experts
    rank = tl.load(placement + experts, mask=is_expert, other=0)
    tiers = _is_on(granted, rank, NUM_RANKS).to(tl.int32)
    keys = tl.where(is_expert, sort_keys(score, tiers, experts), -1)
    store_best(ids, keys, tokens, num_tokens, K)


@triton.jit
def _candidates(
    score, experts, num_experts, IS_LOGITS: tl.constexpr, IS_PRICED: tl.constexpr,
    NUM_CANDIDATES: tl.constexpr, CANDIDATES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Keys `[TOKENS, CANDIDATES]` of the best-scored experts, best first, and their masses."""
    places = tl.arange(0, CANDIDATES)[None, :]
    keys = sort_keys(score, tl.zeros_like(experts), experts)
    keys = tl.where(experts < num_experts, keys, -1)
    top = tl.full([TOKENS, CANDIDATES], -1, tl.int64)
    for place in range(NUM_CANDIDATES):
        best = tl.max(keys, axis=1)[:, None]
        top = tl.where(places == place, best, top)
        keys = tl.where(keys == best, -1, keys)
    mass = tl.where(places < NUM_CANDIDATES, score_of(top), -float("inf"))
    if IS_LOGITS:
        mass = tl.exp(mass - tl.max(mass, axis=1)[:, None])
        mass /= tl.sum(mass, axis=1)[:, None]
    mass = tl.maximum(mass, 0.0)
    if IS_PRICED:
        mass *= mass
    return top, mass


@triton.jit
def _worth_of_ranks(
    mass, rank, places, NUM_RANKS: tl.constexpr, RANKS: tl.constexpr, K: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """What orders the ranks that hold any of the K best: their masses, those beyond by half."""
    every_rank = tl.arange(0, RANKS)[None, :]
    # Below all masses, in order: -1 holds none of the K best, -2 is padding, -3 has had its turn.
    worths = tl.full([TOKENS, RANKS], -2.0, tl.float32)
    for one in range(NUM_RANKS):
        is_here = rank == one
        halved = tl.where(places < K, mass, mass / 2)
        worth = tl.sum(tl.where(is_here, halved, 0.0), axis=1)
        is_home = tl.max((is_here & (places < K)).to(tl.int32), axis=1) > 0
        worths = tl.where(every_rank == one, tl.where(is_home, worth, -1.0)[:, None], worths)
    return worths


@triton.jit
def _kept_on(
    option, mass, rank, places, sizes, K: tl.constexpr, NUM_RANKS: tl.constexpr,
    RANKS: tl.constexpr, MUST_FILL: tl.constexpr,
):  # fmt: skip
    """The share of the K largest masses that the K best on a set of ranks keep, and its size."""
    every_rank = tl.arange(0, RANKS)[None, :]
    in_option = _is_on(option, every_rank, NUM_RANKS)
    is_inside = _is_on(option, rank, NUM_RANKS)
    is_kept = is_inside & (tl.cumsum(is_inside.to(tl.int32), axis=1) <= K)
    total = tl.sum(tl.where(places < K, mass, 0.0), axis=1)[:, None]
    lost = total - tl.sum(tl.where(is_kept, mass, 0.0), axis=1)[:, None]
    kept = 1 - lost / tl.maximum(total, 1.1754943508222875e-38)  # float32's tiny, as the reference
    if MUST_FILL:
        held = tl.load(sizes + every_rank, mask=every_rank <= NUM_RANKS, other=0.0)
        num_held = tl.sum(tl.where(in_option, held, 0.0), axis=1)[:, None]
        kept = tl.where(num_held >= K, kept, -float("inf"))
    in_option &= every_rank < NUM_RANKS
    return kept, tl.sum(in_option.to(tl.float32), axis=1)[:, None]


@triton.jit
def _grant(
    mass, rank, places, sizes, bound, K: tl.constexpr, NUM_RANKS: tl.constexpr,
    RANKS: tl.constexpr, NUM_OPTIONS: tl.constexpr, ALL_SETS: tl.constexpr,
    MUST_FILL: tl.constexpr, IS_PRICED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The best set of ranks of each token, bit r for rank r, `[TOKENS, 1]`."""
    every_rank = tl.arange(0, RANKS)[None, :]
    granted = tl.zeros([TOKENS, 1], tl.int64)
    option = tl.zeros([TOKENS, 1], tl.int64)
    most_worth = tl.full([TOKENS, 1], -float("inf"), tl.float32)
    most_kept = tl.full([TOKENS, 1], -float("inf"), tl.float32)
    if not ALL_SETS:
        worths = _worth_of_ranks(mass, rank, places, NUM_RANKS, RANKS, K, TOKENS)
    for number in range(NUM_OPTIONS):
        if ALL_SETS:
            option += 1  # counting runs through all sets of bits
        else:
            turn = tl.argmax(worths, axis=1)[:, None]
            option |= tl.full([TOKENS, 1], 1, tl.int64) << turn
            worths = tl.where(every_rank == turn, -3.0, worths)
        kept, num_ranks = _kept_on(
            option, mass, rank, places, sizes, K, NUM_RANKS, RANKS, MUST_FILL
        )
        if IS_PRICED:
            worth = kept - bound * num_ranks
        else:
            worth = tl.where(kept >= bound, -num_ranks, -float("inf"))
        is_better = (worth > most_worth) | ((worth == most_worth) & (kept > most_kept))
        is_better |= number == 0
        granted = tl.where(is_better, option, granted)
        most_worth = tl.where(is_better, worth, most_worth)
        most_kept = tl.where(is_better, kept, most_kept)
    return granted


@triton.jit
def _choose_on_ranks(
    scores, placement, sizes, ids, bound, num_tokens, num_experts,
    K: tl.constexpr, NUM_CANDIDATES: tl.constexpr, CANDIDATES: tl.constexpr,
    NUM_RANKS: tl.constexpr, RANKS: tl.constexpr, NUM_OPTIONS: tl.constexpr,
    ALL_SETS: tl.constexpr, MUST_FILL: tl.constexpr, IS_PRICED: tl.constexpr, DROPS: tl.constexpr,
    IS_LOGITS: tl.constexpr, TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """`bound` is the price of a rank, or the least share to keep."""
    tokens, experts, score = load_scores(scores, num_tokens, num_experts, TOKENS, EXPERTS)
    top, mass = _candidates(
        score, experts, num_experts, IS_LOGITS, IS_PRICED, NUM_CANDIDATES, CANDIDATES, TOKENS
    )  # fmt: skip
    places = tl.arange(0, CANDIDATES)[None, :]
    is_candidate = places < NUM_CANDIDATES
    candidate = tl.where(is_candidate, expert_of(top), 0)
    rank = tl.load(placement + candidate)
    granted = _grant(
        mass, rank, places, sizes, bound, K, NUM_RANKS, RANKS, NUM_OPTIONS, ALL_SETS, MUST_FILL,
        IS_PRICED, TOKENS,
    )  # fmt: skip
    if DROPS:
        is_kept = is_candidate & _is_on(granted, rank, NUM_RANKS)
        best = expert_of(tl.max(tl.where(is_kept, top, -1), axis=1))[:, None]
        is_place = is_candidate & (tokens < num_tokens)
        tl.store(ids + tokens * K + places, tl.where(is_kept, candidate, best), mask=is_place)
    else:
        _store_best_on(
            ids, granted, score, placement, tokens, experts, num_tokens, num_experts, K, NUM_RANKS
        )


@triton.jit
def _choose_on_best_ranks(
    scores, placement, experts_by_rank, ids, num_tokens, num_experts, num_slots,
    K: tl.constexpr, NUM_ALLOWED: tl.constexpr, PER_RANK: tl.constexpr, NUM_RANKS: tl.constexpr,
    IS_LOGITS: tl.constexpr, TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
    RANKS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Sums each rank's best masses, read a second time rank by rank, and takes the best ranks."""
    tokens, experts, score = load_scores(scores, num_tokens, num_experts, TOKENS, EXPERTS)
    every_rank = tl.arange(0, RANKS)[None, :]
    rank, slot = tl.arange(0, RANKS)[:, None], tl.arange(0, SLOTS)[None, :]
    is_slot = (rank < NUM_RANKS) & (slot < num_slots)
    expert = tl.load(experts_by_rank + rank * num_slots + slot, mask=is_slot, other=0)
    is_slot &= expert < num_experts
    expert = tl.where(is_slot, expert, 0)[None, :, :]
    row = tl.minimum(tokens, num_tokens - 1)[:, :, None]
    mass = tl.load(scores + row * num_experts + expert).to(tl.float32)
    if IS_LOGITS:
        highest = tl.max(score, axis=1)[:, None]
        total = tl.sum(tl.exp(score - highest), axis=1)[:, None]
        mass = tl.exp(mass - highest[:, :, None]) / total[:, :, None]
    mass = tl.where(is_slot[None, :, :], tl.maximum(mass, 0.0), 0.0)
    sums = tl.zeros([TOKENS, RANKS], tl.float32)
    for _ in range(PER_RANK):
        best = tl.max(mass, axis=2)
        sums += best
        place = tl.argmax(mass, axis=2)[:, :, None]
        mass = tl.where(slot[None, :, :] == place, 0.0, mass)
    sums = tl.where(every_rank < NUM_RANKS, sums, -1.0)
    granted = tl.zeros([TOKENS, 1], tl.int64)
    for _ in range(NUM_ALLOWED):
        best = tl.argmax(sums, axis=1)[:, None]
        granted |= tl.full([TOKENS, 1], 1, tl.int64) << best
        sums = tl.where(every_rank == best, -2.0, sums)
    _store_best_on(
        ids, granted, score, placement, tokens, experts, num_tokens, num_experts, K, NUM_RANKS
    )
