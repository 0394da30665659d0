"""The dispatch layout by counting sorts: stable, and nothing is read back to the host.

Blocks of pairs count their keys, a running sum over keys, then blocks, says where each block's
pairs of each key begin, and every pair finds its position among those before it in its block. More
than 1,024 keys are left to torch's stable sort.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from c2r.ops.copy_rows import RowCopies
from c2r.ops.dispatch_layout import reference
from c2r.ops.dispatch_layout.reference import SendLayout
from c2r.ops.launching import launch

_PAIRS = 128
"""Pairs per program, each compared with the 127 before it: more pairs cost their square, fewer make
the table of counts longer. Nothing spills on sm_90 (benchmarks/kernel_resources.py)."""
_MAX_KEYS = 1024
"""Beyond, a block's histogram has more bins than pairs by far. Chosen by hand."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Sorted:
    """Pairs by key: `order[position[i]] = i`, and how many have each key."""

    order: Tensor
    position: Tensor
    counts: Tensor


def one_row_per_destination(
    rows: Tensor, destinations: Tensor, num_destinations: int
) -> SendLayout:
    """See the reference."""
    rows, destinations = rows.contiguous(), destinations.contiguous()
    by_destination = _sort(destinations, num_destinations)
    num_pairs = len(rows)
    starts_row = torch.empty(num_pairs, dtype=torch.bool, device=rows.device)
    source = torch.zeros_like(rows)
    blocks = (triton.cdiv(num_pairs, _PAIRS),)
    launch(
        _mark_starts, blocks, by_destination.order, rows, destinations, starts_row,
        num_pairs, num_destinations, PAIRS=_PAIRS, num_warps=4,
    )  # fmt: skip
    rows_so_far = starts_row.cumsum(0)
    launch(
        _list_sources, blocks, by_destination.order, rows, starts_row, rows_so_far, source,
        num_pairs, PAIRS=_PAIRS, num_warps=4,
    )  # fmt: skip
    before_each = torch.cat([rows_so_far.new_zeros(1), rows_so_far])
    ends = before_each[by_destination.counts.cumsum(0)]
    return SendLayout(
        order=by_destination.order,
        starts_row=starts_row,
        source=source,
        num_rows=ends.diff(prepend=ends.new_zeros(1)),
        num_pairs=by_destination.counts,
    )


def one_row_per_pair(slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """See the reference."""
    by_slot = _sort(slots.contiguous(), num_slots)
    return by_slot.order, by_slot.counts


def sort_by_expert(
    rows: Tensor, ids: Tensor, num_rows: int, num_experts: int
) -> tuple[RowCopies, Tensor]:
    """See the reference."""
    by_expert = _sort(ids.contiguous(), num_experts)
    copies = RowCopies(
        source=rows[by_expert.order],
        members=by_expert.position,
        starts=torch.searchsorted(rows, torch.arange(num_rows, device=rows.device)),
    )
    return copies, by_expert.counts


def _sort(keys: Tensor, num_keys: int) -> _Sorted:
    """Sorts `keys` `[pairs]` int64; those that are `num_keys` come last and are not counted."""
    if num_keys >= _MAX_KEYS:
        order, counts = reference.one_row_per_pair(keys, num_keys)
        return _Sorted(order=order, position=reference.inverse(order), counts=counts)
    num_pairs = len(keys)
    num_blocks = triton.cdiv(num_pairs, _PAIRS)
    counts = keys.new_empty(num_keys + 1, num_blocks, dtype=torch.int32)
    bins = max(16, triton.next_power_of_2(num_keys + 2))  # one for no pair
    launch(
        _count_keys, (num_blocks,), keys, counts, num_pairs, num_keys, num_blocks,
        PAIRS=_PAIRS, BINS=bins, num_warps=4,
    )  # fmt: skip
    # Counts are stored key by key, then block by block: one running sum gives every block's start.
    so_far = counts.flatten().cumsum(0)
    order, position = torch.empty_like(keys), torch.empty_like(keys)
    launch(
        _place, (num_blocks,), keys, counts, so_far, order, position, num_pairs, num_blocks,
        PAIRS=_PAIRS, num_warps=4,
    )  # fmt: skip
    return _Sorted(order=order, position=position, counts=counts[:-1].sum(1))


@triton.jit
def _count_keys(
    keys, counts, num_pairs, num_keys, num_blocks, PAIRS: tl.constexpr, BINS: tl.constexpr
):
    """A program per block of pairs: how many have each key."""
    block = tl.program_id(0)
    pairs = block.to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    key = tl.load(keys + pairs, mask=pairs < num_pairs, other=BINS - 1).to(tl.int32)
    bins = tl.arange(0, BINS)
    found = tl.histogram(key, BINS)
    tl.store(counts + bins.to(tl.int64) * num_blocks + block, found, mask=bins <= num_keys)


@triton.jit
def _place(keys, counts, so_far, order, position, num_pairs, num_blocks, PAIRS: tl.constexpr):
    """A program per block of pairs: after all smaller keys, earlier blocks, and earlier pairs."""
    block = tl.program_id(0)
    lanes = tl.arange(0, PAIRS)
    pairs = block.to(tl.int64) * PAIRS + lanes
    inside = pairs < num_pairs
    key = tl.load(keys + pairs, mask=inside, other=-1)
    at = key * num_blocks + block
    begin = tl.load(so_far + at, mask=inside, other=0) - tl.load(counts + at, mask=inside, other=0)
    is_before = (key[:, None] == key[None, :]) & (lanes[:, None] > lanes[None, :])
    found = begin + tl.sum(is_before.to(tl.int32), axis=1)
    tl.store(order + found, pairs, mask=inside)
    tl.store(position + pairs, found, mask=inside)


@triton.jit
def _mark_starts(
    order, rows, destinations, starts_row, num_pairs, num_destinations, PAIRS: tl.constexpr
):
    """A program per block of sorted pairs: does a pair start a row of its destination?"""
    positions = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside, has_earlier = positions < num_pairs, (positions > 0) & (positions < num_pairs)
    pair = tl.load(order + positions, mask=inside, other=0)
    earlier = tl.load(order + positions - 1, mask=has_earlier, other=0)
    destination = tl.load(destinations + pair, mask=inside, other=0)
    is_same = tl.load(destinations + earlier, mask=has_earlier, other=0) == destination
    row = tl.load(rows + pair, mask=inside, other=0)
    is_same &= tl.load(rows + earlier, mask=has_earlier, other=0) == row
    starts = (destination < num_destinations) & ~(is_same & has_earlier)
    tl.store(starts_row + positions, starts, mask=inside)


@triton.jit
def _list_sources(order, rows, starts_row, rows_so_far, source, num_pairs, PAIRS: tl.constexpr):
    """A program per block of sorted pairs: the row of each pair that starts one."""
    positions = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside = positions < num_pairs
    pair = tl.load(order + positions, mask=inside, other=0)
    starts = inside & (tl.load(starts_row + positions, mask=inside, other=0) != 0)
    found = tl.load(rows_so_far + positions, mask=inside, other=1) - 1
    tl.store(source + found, tl.load(rows + pair, mask=inside, other=0), mask=starts)
