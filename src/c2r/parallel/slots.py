"""Where each expert lives.

A slot is room for one expert on a rank. Slots are numbered rank by rank, as in engines' files.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from c2r.errors import PlanError
from c2r.parallel.replicas import ReplicaRule
from c2r.plans.holders import experts_of
from c2r.types import Int

_MAX_SLOTS = 2**15 - 1
"""Slots travel as int16, whose sign marks the first pair of a row (`encode_pairs`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExpertSlots:
    """Every expert has a slot on each rank that holds it.

    The experts of a rank are its own in ascending order, then its replicas as the plan has them.
    The slots of all ranks are numbered as if each had `max_per_rank`: slot s is on rank
    s // max_per_rank.

    Attributes:
        slot_of: `[E + 1]` int64, the slot of each expert on its own rank; the last is past all
            slots, for none.
        num_ranks: ranks in all.
        num_on_rank: experts of each rank, replicas included.
        rule: which of its slots a token takes; None without replicas.
    """

    slot_of: Tensor
    num_ranks: int
    num_on_rank: tuple[int, ...]
    rule: ReplicaRule | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.slot_of) - 1

    @property
    def max_per_rank(self) -> int:
        """Experts of the rank that has most."""
        return max(self.num_on_rank)

    @property
    def num_slots(self) -> int:
        """Slots of all ranks, as numbered; the id of none."""
        return self.num_ranks * self.max_per_rank

    def choose(self, expert_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The slot of each choice, and how many are out of range.

        Args:
            expert_ids: `[tokens, k]` int64; -1 for none.

        Returns:
            `[tokens * k]` int64, `num_slots` for none and for what is out of range; and an int64
            scalar.
        """
        is_expert = (expert_ids >= 0) & (expert_ids < self.num_experts)
        num_invalid = (~is_expert & (expert_ids != -1)).sum()
        ids = expert_ids.masked_fill(~is_expert, self.num_experts)
        slots = self.slot_of[ids] if self.rule is None else self.rule.choose(ids)
        return slots.reshape(-1), num_invalid


def expert_slots(
    placement: ArrayLike,
    num_ranks: int,
    device: torch.device | str = "cpu",
    replicas: ArrayLike = (),
    ranks_per_node: int | None = None,
) -> ExpertSlots:
    """The slots of a placement `[E]`, the rank of each expert, and replicas `[ranks, r]`.

    Placement `[1, 0, 1]` puts experts 0 and 2 into the slots 2 and 3 of rank 1, expert 1 into 0;
    replicas `[[2], [1]]` add expert 2 on rank 0 and expert 1 on rank 1, which then has three.

    Args:
        placement: `[E]` the rank of each expert.
        num_ranks: ranks in all.
        device: of the tables.
        replicas: `[ranks, r]` further experts of each rank; empty for none.
        ranks_per_node: ranks on each node, which replicas are chosen by; one node where None.

    Raises:
        PlanError: a rank or a replica is out of range, a rank has an expert twice, or there are
            too many slots.
    """
    ranks = np.asarray(placement, dtype=np.int64)
    if not len(ranks) or ranks.min() < 0 or ranks.max() >= num_ranks:
        raise PlanError(
            f"the placement names ranks {ranks.min(initial=0)} to {ranks.max(initial=0)} of only "
            f"{num_ranks} ranks; plan for {num_ranks} ranks"
        )
    copies = np.asarray(replicas, dtype=np.int64)
    _check_replicas(ranks, copies, num_ranks)
    held = [experts_of(ranks, copies, rank) for rank in range(num_ranks)]
    most = max(map(len, held))
    num_slots = most * num_ranks
    if num_slots > _MAX_SLOTS:
        raise PlanError(
            f"{most} experts on one of {num_ranks} ranks are {num_slots} slots, more than "
            f"{_MAX_SLOTS}; spread the experts evenly"
        )
    slot_at = np.full((len(ranks) + 1, num_ranks), num_slots)
    for rank, experts in enumerate(held):
        slot_at[experts, rank] = rank * most + np.arange(len(experts))
    slot_of = [*slot_at[np.arange(len(ranks)), ranks], num_slots]
    rule = ReplicaRule(
        slot_at=torch.tensor(slot_at, device=device),
        num_slots=num_slots,
        ranks_per_node=ranks_per_node or num_ranks,
        num_replicated=len(np.unique(copies)),
    )
    return ExpertSlots(
        slot_of=torch.tensor(slot_of, device=device),
        num_ranks=num_ranks,
        num_on_rank=tuple(map(len, held)),
        rule=rule if copies.size else None,
    )


def _check_replicas(placement: Int, replicas: Int, num_ranks: int) -> None:
    if not replicas.size:
        return
    if replicas.ndim != 2 or len(replicas) != num_ranks:
        raise PlanError(
            f"replicas of shape {replicas.shape} are not those of {num_ranks} ranks; give a row "
            "for each rank"
        )
    if replicas.min() < 0 or replicas.max() >= len(placement):
        raise PlanError(
            f"replicas name experts {replicas.min()} to {replicas.max()} of only "
            f"{len(placement)}; plan for this model"
        )
    for rank, experts in enumerate(replicas):
        if (placement[experts] == rank).any() or len(np.unique(experts)) < len(experts):
            raise PlanError(
                f"rank {rank} has an expert twice among its replicas {experts.tolist()} and its "
                "own; give each once"
            )
