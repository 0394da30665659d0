"""Plain torch reference of the dispatch layout.

A pair is a (row, expert) that the router chose. Nothing here reads a number back to the host:
tensors are as long as there are pairs, and what lies beyond the counted part is to be cut off by
the caller, once the counts are on the host.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from c2r.ops.copy_rows import RowCopies


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SendLayout:
    """What is sent, ordered by destination; the first `num_rows.sum()` or `num_pairs.sum()` count.

    Attributes:
        order: `[pairs]` int64, the pairs by destination, within one by row, then as chosen.
        starts_row: `[pairs]` bool, in that order: the pair is the first of its sent row.
        source: `[pairs]` int64, the source row of each sent row.
        num_rows: `[destinations]` int64, rows to each.
        num_pairs: `[destinations]` int64, pairs to each.
    """

    order: Tensor
    starts_row: Tensor
    source: Tensor
    num_rows: Tensor
    num_pairs: Tensor


def one_row_per_destination(
    rows: Tensor, destinations: Tensor, num_destinations: int
) -> SendLayout:
    """Sends a row to each of its destinations once, however many of its experts are there.

    Rows `[0, 0, 1]` for destinations `[1, 1, 0]` are two: row 1 to the first destination and row 0
    to the second; of the pairs in `order = [2, 0, 1]` the first two start a row.

    Args:
        rows: `[pairs]` int64, the row of each pair, in ascending order.
        destinations: `[pairs]` int64; pairs for `num_destinations` stay behind.
        num_destinations: how many there are.
    """
    # Stable: within a destination rows stay ascending, so that equal ones are neighbours.
    order = destinations.argsort(stable=True)
    rows, sorted_destinations = rows[order], destinations[order]
    starts_row = sorted_destinations < num_destinations
    starts_row[1:] &= (rows[1:] != rows[:-1]) | (
        sorted_destinations[1:] != sorted_destinations[:-1]
    )
    # Pairs that start no row write to one position beyond all, which is cut off: no mask, no wait.
    position = starts_row.cumsum(0).sub_(1).masked_fill_(~starts_row, len(rows))
    return SendLayout(
        order=order,
        starts_row=starts_row,
        source=rows.new_zeros(len(rows) + 1).scatter_(0, position, rows)[:-1],
        num_rows=_count(destinations[order], num_destinations, starts_row.long()),
        num_pairs=_count(destinations, num_destinations),
    )


def one_row_per_pair(slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Sends a row for every pair, ordered by expert.

    Args:
        slots: `[pairs]` int64, the slot of each pair's expert, numbered rank by rank; pairs for
            `num_slots` stay behind.
        num_slots: slots in all.

    Returns:
        `[pairs]` int64 the pairs by slot, and `[num_slots]` int64 how many each gets.
    """
    return slots.argsort(stable=True), _count(slots, num_slots)


def encode_pairs(ids: Tensor, starts_row: Tensor) -> Tensor:
    """`[pairs]` int16: the id of a pair that starts a row, the complement of any other.

    The sign bit stands in for row numbers: rows arrive in order, so the receiver counts.
    `[4, 5, 4]` of which the first and last start rows are encoded as `[4, -6, 4]`.
    """
    return torch.where(starts_row, ids, ~ids).to(torch.int16)


def decode_pairs(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the id of each pair, both `[pairs]` int64, from `encode_pairs`."""
    codes = codes.long()
    return (codes >= 0).cumsum(0).sub_(1), torch.where(codes >= 0, codes, ~codes)


def sort_by_expert(
    rows: Tensor, ids: Tensor, num_rows: int, num_experts: int
) -> tuple[RowCopies, Tensor]:
    """Copies every row to its experts, ordered by expert.

    Args:
        rows: `[pairs]` int64, the row of each pair, in ascending order.
        ids: `[pairs]` int64, its expert.
        num_rows: rows in all.
        num_experts: experts in all.

    Returns:
        The copies, whose members are in the order of the pairs, and `[num_experts]` int64 how many
        copies each expert gets.
    """
    order = ids.argsort(stable=True)
    per_row = _count(rows, num_rows)
    copies = RowCopies(
        source=rows[order],
        members=inverse(order),
        starts=per_row.cumsum(0) - per_row,
    )
    return copies, _count(ids, num_experts)


def expert_major(counts: Tensor, num_rows: int) -> Tensor:
    """The order that turns rows grouped by rank, then expert, into rows grouped by expert.

    Counts `[[2, 3], [1, 4]]` of two ranks and two experts give `[0, 1, 5, 2, 3, 4, 6, 7, 8, 9]`.

    Args:
        counts: `[ranks, experts]` int64, rows of each group.
        num_rows: their sum.

    Returns:
        `[num_rows]` int64, the position of each row before.
    """
    # Each (rank, expert) group moves as a block: where it was, less where it will be, is its shift.
    flat = counts.flatten()
    before = (flat.cumsum(0) - flat).view_as(counts).T.flatten()
    lengths = counts.T.flatten()
    after = lengths.cumsum(0) - lengths
    shift = (before - after).repeat_interleave(lengths, output_size=num_rows)
    return shift + torch.arange(num_rows, device=counts.device)


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order` `[n]`."""
    positions = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, positions)


def _count(ids: Tensor, num_bins: int, amounts: Tensor | None = None) -> Tensor:
    """Occurrences `[num_bins]` of each id, or sums of amounts; id `num_bins` counts nowhere."""
    counts = torch.zeros(num_bins + 1, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(0, ids, torch.ones_like(ids) if amounts is None else amounts)[:-1]
