"""Which replica of an expert a token takes: the rule of `c2r.plans`, on the device.

`c2r.plans.assign_ranks` says what the rule is, and predicts by it; here it is worked out for the
tokens of a dispatch, without reading a number back to the host.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReplicaRule:
    """Chooses the slot of each of a token's experts, where experts have several.

    Attributes:
        slot_at: `[E + 1, ranks]` int64, the slot of each expert on each rank; `num_slots` where the
            rank does not hold it, as in all of the last row, which is for none.
        num_slots: slots of all ranks.
        ranks_per_node: ranks on each node.
        num_replicated: experts that several ranks hold.
    """

    slot_at: Tensor
    num_slots: int
    ranks_per_node: int
    num_replicated: int

    def choose(self, expert_ids: Tensor) -> Tensor:
        """`[tokens, k]` slots of `[tokens, k]` distinct expert ids, E for none."""
        k, num_ranks = expert_ids.shape[1], self.slot_at.shape[1]
        slots = self.slot_at[expert_ids]
        held = slots < self.num_slots  # [tokens, k, ranks], as all that has three dimensions
        is_alone = held.sum(2, keepdim=True) == 1
        visited = (held & is_alone).any(1)
        ranks = torch.arange(num_ranks, device=expert_ids.device)
        id_sums = expert_ids.masked_fill(expert_ids == len(self.slot_at) - 1, 0).sum(1)
        turn = (id_sums[:, None] - 1 - ranks) % num_ranks
        by_node = (len(visited), num_ranks // self.ranks_per_node, self.ranks_per_node)
        # As many rounds as any token can need, each of which visits a rank for every token that
        # misses one: to stop earlier, the host would have to wait for the device.
        for _ in range(min(k, num_ranks - 1, self.num_replicated)):
            serves = (held & ~(held & visited[:, None]).any(2, keepdim=True)).sum(1)
            near = visited.view(by_node).any(2)
            near = near.repeat_interleave(self.ranks_per_node, dim=1) & (serves > 0)
            first = ((serves + k * near) * num_ranks + turn).argmax(1, keepdim=True)
            visited |= (ranks == first) & (serves > 0)
        rank = torch.where(held & visited[:, None], turn[:, None], -1).argmax(2, keepdim=True)
        return slots.gather(2, rank).squeeze(2)
