"""Where each expert lives.

A slot is room for one expert on a rank. Slots are numbered rank by rank, as in engines' files.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from c2r.errors import PlanError

_MAX_SLOTS = 2**15 - 1
"""Slots travel as int16, whose sign marks the first pair of a row (`encode_pairs`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExpertSlots:
    """Every expert has one slot, on one rank; the experts of a rank are in ascending order.

    The slots of all ranks are numbered as if each had `max_per_rank`: slot s is on rank
    s // max_per_rank.

    Attributes:
        rank_of: `[E + 1]` int64, the rank of each expert; the last is `num_ranks`, for none.
        slot_of: `[E + 1]` int64, the slot of each expert; the last is past all slots.
        num_ranks: ranks in all.
        num_on_rank: experts of each rank.
    """

    rank_of: Tensor
    slot_of: Tensor
    num_ranks: int
    num_on_rank: tuple[int, ...]

    @property
    def num_experts(self) -> int:
        """E."""
        return sum(self.num_on_rank)

    @property
    def max_per_rank(self) -> int:
        """Experts of the rank that has most."""
        return max(self.num_on_rank)

    def none_where_invalid(self, expert_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Flat ids with E for -1 and for all that are out of range, and how many those are."""
        flat = expert_ids.reshape(-1)
        is_expert = (flat >= 0) & (flat < self.num_experts)
        num_invalid = (~is_expert & (flat != -1)).sum()
        return flat.masked_fill(~is_expert, self.num_experts), num_invalid


def expert_slots(
    placement: ArrayLike, num_ranks: int, device: torch.device | str = "cpu"
) -> ExpertSlots:
    """The slots of a placement `[E]`, the rank of each expert.

    Placement `[1, 0, 1]` puts experts 0 and 2 into the slots 2 and 3 of rank 1, expert 1 into 0.

    Raises:
        PlanError: a rank is out of range, or there are too many slots.
    """
    ranks = np.asarray(placement, dtype=np.int64)
    if not len(ranks) or ranks.min() < 0 or ranks.max() >= num_ranks:
        raise PlanError(
            f"the placement names ranks {ranks.min(initial=0)} to {ranks.max(initial=0)} of only "
            f"{num_ranks} ranks; plan for {num_ranks} ranks"
        )
    counts = np.bincount(ranks, minlength=num_ranks)
    most = int(counts.max())
    if most * num_ranks > _MAX_SLOTS:
        raise PlanError(
            f"{most} experts on one of {num_ranks} ranks are {most * num_ranks} slots, more than "
            f"{_MAX_SLOTS}; spread the experts evenly"
        )
    slots = np.empty_like(ranks)
    for rank in range(num_ranks):
        held = np.flatnonzero(ranks == rank)
        slots[held] = rank * most + np.arange(len(held))
    return ExpertSlots(
        rank_of=torch.tensor([*ranks, num_ranks], device=device),
        slot_of=torch.tensor([*slots, most * num_ranks], device=device),
        num_ranks=num_ranks,
        num_on_rank=tuple(int(count) for count in counts),
    )
