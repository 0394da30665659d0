"""Plain torch reference of the choice of experts on few ranks.

A token keeps to few ranks and takes its experts from those. All functions are batched over tokens.
`placement` `[E]` int64 is the rank of each expert; `num_ranks`, one beyond the last, stands for an
expert that is on every rank.
"""

import itertools
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.ops.constrained_topk.reference import choose_among

MAX_RANKS_TRIED_IN_FULL = 4
"""15 sets of ranks; 8 ranks would have 255. What the greedy order beyond costs is in docs/log.md
(sets of ranks): 0.7 % more copies at the same budget on 4 ranks."""
MAX_EXPERTS_SEARCHED = 64
"""Of more, only the best-scored are looked at. That saves time and costs copies: of 32 experts,
k = 8, on 4 ranks, a price of 0.15 left 1.94 copies among 3 k and 1.70 among all, at no more loss
(docs/log.md, among all experts)."""
_TOLERANCE = 1e-6  # of a share: a few roundings of float32, so that a budget of 0 is met by top-k
_BEYOND_ANY_MASS = 1e9  # what is taken from a mass that has been best, so that it never is again


class Criterion(StrEnum):
    """By what a token's ranks are chosen.

    `BUDGETED`: the fewest that keep (1 - strength) of the mass of its k best-scored experts.
    `PRUNED`: the same, but experts elsewhere are dropped, not replaced. `PRICED`: those that keep
    most of the squared mass once the strength is paid for each. `GROUP_LIMITED`: as many as the
    strength says, by the sums of their top k/m masses.
    """

    BUDGETED = "budgeted"
    PRUNED = "pruned"
    PRICED = "priced"
    GROUP_LIMITED = "group_limited"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRule:
    """How a token's ranks are chosen.

    Attributes:
        criterion: by what.
        strength: its number.
        num_ranks: ranks in all.
        smallest_rank: experts of the rank that has fewest.
        is_logits: scores are logits, to be weighed by their softmax.
    """

    criterion: Criterion
    strength: float
    num_ranks: int
    smallest_rank: int
    is_logits: bool

    @property
    def is_group_limited(self) -> bool:
        """Whether every token gets the same number of ranks."""
        return self.criterion is Criterion.GROUP_LIMITED

    @property
    def is_unconstrained(self) -> bool:
        """Whether every choice is plain top-k."""
        if self.is_group_limited:
            return self.strength >= self.num_ranks
        return self.strength == 0

    @property
    def least_kept(self) -> float:
        """The share of mass that a budget asks for, less what rounding may lose."""
        return 1 - self.strength - _TOLERANCE

    def num_candidates(self, k: int, num_experts: int) -> int:
        """How many of the best-scored experts are looked at."""
        if self.criterion is Criterion.PRUNED:
            return k
        if num_experts <= MAX_EXPERTS_SEARCHED:
            return num_experts
        # 2 k of many experts where ranks are many: nearly as good (docs/log.md, candidates).
        per_expert = 3 if self.num_ranks <= MAX_RANKS_TRIED_IN_FULL else 2
        return min(per_expert * k, num_experts)


class RankTables(NamedTuple):
    """Where the experts of a layer are, in the forms that the choice reads; made once.

    Attributes:
        placement: `[E]` int64, the rank of each expert.
        experts_by_rank: `[ranks, most]` int64, the experts of each rank, filled up with E.
        members: `[ranks + 1, E]` float, 1 where a rank holds an expert; in the last row those that
            are on every rank.
        reach: `[options, ranks + 1]` bool, every set of ranks but the empty one, the last column
            for experts on every rank; no option where ranks are too many to try them all.
    """

    placement: Tensor
    experts_by_rank: Tensor
    members: Tensor
    reach: Tensor

    @classmethod
    def of(cls, placement: Tensor) -> "RankTables":
        """The tables of a placement on ranks that all hold some experts."""
        num_ranks = int(placement.max()) + 1
        sizes = placement.bincount()
        experts_by_rank = torch.full((num_ranks, int(sizes.max())), len(placement))
        for rank, size in enumerate(sizes.tolist()):
            experts_by_rank[rank, :size] = (placement == rank).nonzero().flatten()
        return cls(
            placement=placement,
            experts_by_rank=experts_by_rank.to(placement.device),
            members=members_of(placement, num_ranks),
            reach=_all_sets(num_ranks).to(placement.device),
        )

    @property
    def num_ranks(self) -> int:
        """Ranks in all."""
        return len(self.experts_by_rank)


def choose_on_ranks(
    scores: Tensor,
    tables: RankTables,
    k: int,
    rule: RankRule,
    blocked: Tensor | None = None,
) -> Tensor:
    """The k best-scored experts on the ranks that `rule` grants each token.

    Args:
        scores: `[tokens, E]` selection scores.
        tables: where the experts are.
        k: experts per token.
        rule: how ranks are chosen.
        blocked: `[tokens, E]` bool, experts that a group limit of the model excludes: chosen only
            where fewer than k others exist. Pruning, which only drops, does not heed it.

    Returns:
        `[tokens, k]` int64, best first. The place of a dropped expert repeats column 0.
    """
    members = tables.members
    if rule.is_group_limited:
        mass = mass_of(scores, rule.is_logits) if rule.is_logits else scores.float()
        granted = best_ranks(mass, tables.experts_by_rank, k, int(rule.strength))
        return _best_on(scores, granted, members, k, blocked)
    top = scores.topk(rule.num_candidates(k, scores.shape[-1]), dim=-1)
    mass, ids = mass_of(top.values, rule.is_logits), top.indices
    if rule.criterion is Criterion.PRICED:
        # Errors of unlike experts add up as energy does; plain mass lost more (docs/log.md).
        mass = mass.square()
    options = rank_options(mass, ids, tables, k)
    if rule.criterion is Criterion.PRUNED:
        return _dropped_elsewhere(ids, options.fewest(rule.least_kept), tables.placement)
    if blocked is not None:
        options = options.filling(k, (~blocked).float() @ members.T)
    elif rule.smallest_rank < k:
        options = options.filling(k, members.sum(-1)[None])
    if rule.criterion is Criterion.PRICED:
        granted = options.worthwhile(rule.strength)
    else:
        granted = options.fewest(rule.least_kept)
    return _best_on(scores, granted, members, k, blocked)


def mass_of(scores: Tensor, is_logits: bool) -> Tensor:
    """Non-negative float masses of scores `[..., E]`: their softmax, or what is above 0."""
    return scores.float().softmax(-1) if is_logits else scores.float().clamp(min=0)


def members_of(placement: Tensor, num_ranks: int) -> Tensor:
    """Experts of each rank, and in the last row those on every rank: `[ranks + 1, E]`, 0, 1."""
    every_rank = torch.arange(num_ranks + 1, device=placement.device)
    return (every_rank[:, None] == placement).float()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankOptions:
    """Sets of ranks that each token may choose from, and what each would keep.

    Attributes:
        kept: `[tokens, options]` mass of the k best-scored experts on those ranks, as a share of
            the mass of the k best-scored of all; -inf for an option that cannot be taken.
        num_ranks: `[options]` ranks of each, of the dtype of `kept`.
        ranks: `[options, ranks]` bool, the same for all tokens; or `[tokens, ranks]` int16, the
            turn of each rank: option n is then the ranks whose turn is at most n.
    """

    kept: Tensor
    num_ranks: Tensor
    ranks: Tensor

    def filling(self, k: int, places: Tensor) -> "RankOptions":
        """The options that can fill k places; `places` `[tokens or 1, ranks + 1]` experts each."""
        if self._are_the_same_for_all:
            ranks = self.ranks
        else:
            ranks = self.ranks[:, None] <= _numbers(self.kept.shape[-1], self.ranks)[:, None]
        held = (ranks * places[:, None, :-1]).sum(-1) + places[:, None, -1]
        return replace(self, kept=self.kept.masked_fill(held < k, -torch.inf))

    def fewest(self, least_kept: float) -> Tensor:
        """The fewest ranks that keep `least_kept`, of equally few those that keep most.

        Gives `[tokens, ranks]` bool.
        """
        enough = self.kept >= least_kept
        return self._best((-self.num_ranks).where(enough, -torch.inf))

    def worthwhile(self, price: float) -> Tensor:
        """The ranks that keep most once `price` is paid for each; `[tokens, ranks]` bool."""
        return self._best(self.kept - price * self.num_ranks)

    def _best(self, worth: Tensor) -> Tensor:
        # Two steps instead of one weighted sum: by worth, then by mass, no factor to choose.
        is_best = worth == worth.amax(-1, keepdim=True)
        option = self.kept.masked_fill(~is_best, -torch.inf).argmax(-1)
        if self._are_the_same_for_all:
            return self.ranks.index_select(0, option)
        return self.ranks <= option[:, None]

    @property
    def _are_the_same_for_all(self) -> bool:
        return self.ranks.dtype == torch.bool


def rank_options(top_mass: Tensor, candidates: Tensor, tables: RankTables, k: int) -> RankOptions:
    """What each token would keep on which ranks.

    Up to four ranks, every set of ranks is an option. Of more ranks, a token orders those that
    hold any of its k best-scored experts by the mass of these, and of experts just beyond by half;
    the options are the first n ranks of that order.

    Args:
        top_mass: `[tokens, C]` non-negative masses of the best-scored experts, best first, in any
            unit; C from k to E. Fewer than E may understate what an option keeps.
        candidates: `[tokens, C]` int64, the ids of these experts.
        tables: where the experts are.
        k: experts per token.
    """
    ranks = tables.placement.index_select(0, candidates.flatten()).view_as(candidates)
    if len(tables.reach):
        reach, sets = tables.reach, tables.reach[:, :-1]
        inside = reach.index_select(1, ranks.flatten()).view(len(reach), *ranks.shape)
        kept = _kept(inside.transpose(0, 1), top_mass, k)
        num_ranks = sets.sum(-1, dtype=kept.dtype)
        return RankOptions(kept=kept, num_ranks=num_ranks, ranks=sets)
    turn = _turns(top_mass, ranks, tables.num_ranks, k)
    last = _numbers(min(k, tables.num_ranks), turn)
    kept = _kept(turn.gather(-1, ranks)[:, None] <= last[:, None], top_mass, k)
    num_ranks = (last + 1).to(kept.dtype)
    return RankOptions(kept=kept, num_ranks=num_ranks, ranks=turn[:, :-1])


def _numbers(size: int, like: Tensor) -> Tensor:
    """0 to `size` - 1 in the dtype of another tensor, beside it."""
    return torch.arange(size, device=like.device, dtype=like.dtype)


def _all_sets(num_ranks: int) -> Tensor:
    """As `RankTables.reach`."""
    if num_ranks > MAX_RANKS_TRIED_IN_FULL:
        return torch.empty(0, num_ranks + 1, dtype=torch.bool)
    sets = itertools.product((False, True), repeat=num_ranks)
    return torch.tensor([(*ranks, True) for ranks in sets][1:])


def _turns(top_mass: Tensor, ranks: Tensor, num_ranks: int, k: int) -> Tensor:
    """When each rank's turn comes, `[tokens, ranks + 1]` int16; -1 for what is on every rank.

    The first k turns include every rank that holds one of the first k candidates.
    """
    # Experts beyond the k best may be needed to fill up, but count by half: chosen by hand.
    worth = top_mass.clone()
    worth[:, k:].div_(2)
    held = top_mass.new_zeros(len(ranks), num_ranks + 1).scatter_add_(-1, ranks, worth)
    is_away = torch.ones_like(held, dtype=torch.bool).scatter_(-1, ranks[:, :k], False)
    # Ranks without one of the k best come last: so the first k turns always hold plain top-k, and a
    # budget can be met.
    order = held.masked_fill_(is_away, -1.0)[:, :-1].argsort(dim=-1, descending=True)
    turn = torch.full_like(held, -1, dtype=torch.int16)
    return turn.scatter_(-1, order, _numbers(num_ranks, turn).expand_as(order))


def _kept(inside: Tensor, top_mass: Tensor, k: int) -> Tensor:
    """Share of the k largest masses that the first k inside hold.

    `inside` `[tokens, options, candidates]` bool, `top_mass` `[tokens, candidates]` descending.
    """
    if inside.shape[-1] > k:
        inside = inside & (inside.cumsum(-1, dtype=torch.int16) <= k)
    # One minus the share lost, not the share kept: all kept then gives exactly 1.
    total = top_mass[:, :k].sum(-1, keepdim=True)
    kept = (inside * top_mass[:, None]).sum(-1)  # a product of matrices would heed autocast
    return 1 - (total - kept) / total.clamp(min=torch.finfo(total.dtype).tiny)


def best_ranks(mass: Tensor, experts_by_rank: Tensor, k: int, num_allowed: int) -> Tensor:
    """The `num_allowed` ranks with the largest sums of their top k/m masses (DeepSeek-V3's rule).

    Args:
        mass: `[tokens, E]` float32 score masses; negative ones count as 0.
        experts_by_rank: `[ranks, most]` int64, the experts of each rank, filled up with E.
        k: experts per token.
        num_allowed: m, ranks per token.

    Returns:
        `[tokens, ranks]` bool.
    """
    by_expert = F.pad(mass.T, (0, 0, 0, 1), value=-1.0)
    held = by_expert.index_select(0, experts_by_rank.flatten()).view(
        *experts_by_rank.shape, len(mass)
    )
    # The top k/m of each rank without a sort: its maximum k/m times; `left` bounds ties.
    sums = torch.zeros_like(held[:, 0])
    left = torch.full_like(sums, -(-k // num_allowed))
    is_best = None
    for _ in range(-(-k // num_allowed)):  # a maximum without its place is far quicker to find
        if is_best is not None:
            held.sub_(is_best.to(held.dtype), alpha=_BEYOND_ANY_MASS)
        best = held.amax(1)
        is_best = held == best[:, None]
        taken = is_best.sum(1, dtype=held.dtype).minimum(left)
        sums += taken * best.clamp(min=0)
        left -= taken
    chosen = sums.T.topk(num_allowed, dim=-1).indices
    allowed = torch.zeros(len(mass), len(experts_by_rank), dtype=torch.bool, device=mass.device)
    return allowed.scatter_(-1, chosen, True)


def _best_on(
    scores: Tensor, granted: Tensor, members: Tensor, k: int, blocked: Tensor | None
) -> Tensor:
    """The k best-scored experts on the granted ranks, `[tokens, k]`.

    One sum in place of a mask, which would take as long as half of the top-k (docs/log.md, masked
    fills).
    """
    if blocked is not None:
        allowed = torch.addmm(members[-1], granted.float(), members[:-1]).bool()
        return choose_among(scores, allowed, k, blocked)
    # Scores stay above lowest / 4, so that those on ranks not granted, lowered by lowest / 2, come
    # after all others, and 3/4 of the range is never exceeded, which would make them equal at -inf.
    lowest = torch.finfo(scores.dtype).min
    key = scores.clamp(min=lowest / 4)
    key.addmm_((~granted).to(key.dtype), members[:-1].to(key.dtype), alpha=lowest / 2)
    return key.topk(k, dim=-1).indices


def _dropped_elsewhere(ids: Tensor, granted: Tensor, placement: Tensor) -> Tensor:
    """`ids` `[tokens, k]`, the best kept one in place of those that are not on granted ranks."""
    reach = torch.cat([granted, granted.new_ones(len(granted), 1)], dim=-1)
    kept = reach.gather(-1, placement[ids])
    best = ids.gather(-1, kept.byte().argmax(-1, keepdim=True))
    return ids.where(kept, best)
