"""Which ranks a token may use, under policies that know the placement.

A token keeps to few ranks and takes its experts from those. All functions are batched over tokens.
`placement` `[E]` int64 is the rank of each expert; `num_ranks`, one beyond the last, stands for an
expert that is on every rank.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MAX_RANKS_TRIED_IN_FULL = 4
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankOptions:
    """Sets of ranks that each token may choose from, and what each would keep.

    Attributes:
        ranks: `[tokens or 1, options, ranks]` bool.
        kept: `[tokens, options]` mass of the k best-scored experts on those ranks, as a share of
            the mass of the k best-scored of all; -inf for an option that cannot be taken.
    """

    ranks: Tensor
    kept: Tensor

    def filling(self, k: int, places: Tensor) -> "RankOptions":
        """The options that can fill k places; `places` `[tokens or 1, ranks + 1]` experts each."""
        held = (self.ranks * places[:, None, :-1]).sum(-1) + places[:, None, -1]
        return replace(self, kept=self.kept.masked_fill(held < k, -torch.inf))

    def fewest(self, eps: float) -> Tensor:
        """The fewest ranks that keep 1 - eps, of equally few those that keep most.

        Gives `[tokens, ranks]` bool.
        """
        enough = self.kept >= 1 - eps - _TOLERANCE
        return self._best((-self._num_ranks()).where(enough, -torch.inf))

    def worthwhile(self, price: float) -> Tensor:
        """The ranks that keep most once `price` is paid for each; `[tokens, ranks]` bool."""
        return self._best(self.kept - price * self._num_ranks())

    def _num_ranks(self) -> Tensor:
        return self.ranks.sum(-1, dtype=self.kept.dtype)

    def _best(self, worth: Tensor) -> Tensor:
        is_best = worth == worth.amax(-1, keepdim=True)
        option = self.kept.masked_fill(~is_best, -torch.inf).argmax(-1)
        if len(self.ranks) == 1:
            return self.ranks[0].index_select(0, option)
        index = option[:, None, None].expand(-1, 1, self.ranks.shape[-1])
        return self.ranks.gather(1, index).squeeze(1)


def rank_options(
    mass: Tensor, placement: Tensor, num_ranks: int, k: int, num_candidates: int
) -> RankOptions:
    """What each token would keep on which ranks.

    Up to four ranks, every set of ranks is an option. Of more ranks, a token orders the ranks by
    the mass that they hold of its k best-scored experts, those just beyond counting half; its
    options are the first n ranks of that order, and the ranks of its k best-scored experts.

    Args:
        mass: `[tokens, E]` non-negative score masses.
        placement: `[E]`.
        num_ranks: ranks in all.
        k: experts per token.
        num_candidates: how many of the best-scored experts are looked at, from k to E. Fewer than
            E may understate what an option keeps, and never overstate it.
    """
    top_mass, candidates = mass.topk(num_candidates, dim=-1)
    ranks = placement.index_select(0, candidates.flatten()).view_as(candidates)
    if num_ranks <= _MAX_RANKS_TRIED_IN_FULL:
        options = _all_sets(num_ranks, mass.device)
        reach = torch.cat([options, options.new_ones(len(options), 1)], dim=1)
        inside = reach.index_select(1, ranks.flatten()).view(len(reach), *ranks.shape)
        inside = inside.transpose(0, 1)
        return RankOptions(ranks=options[None], kept=_kept(inside, top_mass, k))
    turn = _turns(top_mass, ranks, num_ranks, k)
    last = torch.arange(min(k, num_ranks), device=mass.device, dtype=torch.int16)[:, None]
    kept = _kept(turn.gather(-1, ranks)[:, None] <= last, top_mass, k)
    home = torch.zeros_like(turn, dtype=torch.bool).scatter_(-1, ranks[:, :k], True)
    options = torch.cat([turn[:, None] <= last, home[:, None]], dim=1)[..., :-1]
    return RankOptions(ranks=options, kept=torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1))


def _all_sets(num_ranks: int, device: torch.device) -> Tensor:
    """Every set of ranks but the empty one, `[options, ranks]` bool."""
    sets = list(itertools.product((False, True), repeat=num_ranks))[1:]
    return torch.tensor(sets, device=device)


def _turns(top_mass: Tensor, ranks: Tensor, num_ranks: int, k: int) -> Tensor:
    """When each rank's turn comes, `[tokens, ranks + 1]`; -1 for what is on every rank."""
    worth = torch.cat([top_mass[:, :k], top_mass[:, k:] / 2], dim=-1)
    held = top_mass.new_zeros(len(ranks), num_ranks + 1).scatter_add_(-1, ranks, worth)
    order = held[:, :-1].argsort(dim=-1, descending=True)
    places = torch.arange(num_ranks, device=ranks.device, dtype=torch.int16).expand_as(order)
    return torch.full_like(held, -1, dtype=torch.int16).scatter_(-1, order, places)


def _kept(inside: Tensor, top_mass: Tensor, k: int) -> Tensor:
    """Share of the k largest masses that the first k inside hold.

    `inside` `[tokens, options, candidates]` bool, `top_mass` `[tokens, candidates]` descending.
    """
    if inside.shape[-1] > k:
        inside = inside & (inside.cumsum(-1, dtype=torch.int16) <= k)
    total = top_mass[:, :k].sum(-1, keepdim=True)
    kept = (inside.to(top_mass.dtype) @ top_mass[..., None]).squeeze(-1)
    return 1 - (total - kept) / total.clamp(min=torch.finfo(total.dtype).tiny)


def best_ranks(mass: Tensor, slots: Tensor, k: int, num_allowed: int) -> Tensor:
    """The `num_allowed` ranks with the largest sums of their top k/m masses (DeepSeek-V3's rule).

    Args:
        mass: `[tokens, E]` non-negative score masses.
        slots: `[ranks, slots]` int64, the experts of each rank, filled up with E.
        k: experts per token.
        num_allowed: m, ranks per token.

    Returns:
        `[tokens, ranks]` bool.
    """
    padded = torch.cat([mass, mass.new_full((len(mass), 1), -1.0)], dim=-1)
    held = padded.index_select(1, slots.flatten()).view(len(mass), *slots.shape)
    held = held.permute(2, 0, 1).contiguous()
    sums = torch.zeros_like(held[0])
    for _ in range(min(-(-k // num_allowed), len(held))):  # quicker than top-k of many short rows
        best, slot = held.max(0)
        sums += best.clamp(min=0)
        held.scatter_(0, slot[None], -1.0)
    chosen = sums.topk(num_allowed, dim=-1).indices
    return torch.zeros_like(sums, dtype=torch.bool).scatter(-1, chosen, True)
