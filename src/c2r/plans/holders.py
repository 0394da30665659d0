"""Which replica of an expert a token takes, where experts live on several ranks.

The choice depends on the token's experts and the plan alone, not on the batch: what is predicted
from routing sets is then what a dispatcher sends.
"""

import numpy as np
import numpy.typing as npt

from c2r.types import Bool, Int

NO_EXPERTS: Int = np.empty((0, 0), dtype=np.int64)
"""What a layer without replicas, or without lists of partners, has of them."""


def assign_ranks(expert_ids: Int, holders: Bool, ranks_per_node: int | None = None) -> Int:
    """The rank that computes each of a token's experts.

    A token visits the ranks of its experts that live on one rank only. While one of its experts
    is on no visited rank, it visits another: the rank that holds most such experts, but a rank of
    a visited node before any other. Each expert is then computed on a visited rank that holds it.
    Of equal ranks the first is taken, counted upwards from the sum of the token's expert ids modulo
    R, so that tokens are spread over them. Nothing depends on the order of the experts.

    Expert 0 on ranks 0 and 1 and expert 1 on rank 1: a token with both visits rank 1 only, a token
    with expert 0 alone rank 0.

    Args:
        expert_ids: `[tokens, k]` distinct expert ids in each row.
        holders: `[E, ranks]` bool, the ranks that hold each expert, at least one.
        ranks_per_node: ranks on each node; one node where None.

    Returns:
        `[tokens, k]` int64.
    """
    num_ranks = holders.shape[1]
    ids = np.ascontiguousarray(expert_ids.T)
    start = ids.sum(0) % num_ranks
    masks = _as_bits(holders)
    held = masks[:, ids]
    alone = np.where(holders.sum(1) == 1, masks, 0)
    visited: _Masks = np.bitwise_or.reduce(alone[:, ids], axis=1)
    _visit_more(visited, held, start, num_ranks, ranks_per_node or num_ranks)
    common = held & visited[:, None]
    # Bits of the ranks from the token's start on: the first of these, else the first of all.
    onwards = _as_bits(np.tri(num_ranks, dtype=np.bool_).T)
    later = common & onwards[:, start][:, None]
    return _lowest_bit(np.where((later != 0).any(0), later, common)).T


_Masks = npt.NDArray[np.uint64]
"""`[words, ...]`: bit r % 64 of word r // 64 is of rank r."""
_WORD = 64  # bits: numpy then looks at all ranks of a choice at once


def _as_bits(flags: Bool) -> _Masks:
    """`[words, rows]` masks of `[rows, ranks]` flags."""
    num_rows, num_ranks = flags.shape
    padded = np.zeros((num_rows, -(-num_ranks // _WORD) * _WORD), dtype=np.bool_)
    padded[:, :num_ranks] = flags
    words: _Masks = np.packbits(padded, axis=1, bitorder="little").view("<u8")
    return np.ascontiguousarray(words.T).astype(np.uint64, copy=False)


def _as_flags(masks: _Masks, num_ranks: int) -> npt.NDArray[np.uint8]:
    """`[..., ranks]` ones and zeros of `[words, ...]` masks."""
    words = np.ascontiguousarray(masks.transpose(*range(1, masks.ndim), 0))
    flags = words.astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(flags, axis=-1, count=num_ranks, bitorder="little")


def _lowest_bit(masks: _Masks) -> Int:
    """The lowest rank in each of `[words, ...]` masks, none of which is empty."""
    lowest = masks & (~masks + np.uint64(1))
    # The exponent of a power of two, as a float has it; below nought where the word is empty.
    ranks: Int = (lowest.astype(np.float64).view(np.int64) >> 52) - 1023
    found: Int = ranks[-1]
    for word in reversed(range(len(masks) - 1)):
        found = np.where(masks[word] != 0, ranks[word], found + _WORD)
    return found


def _visit_more(
    visited: _Masks, held: _Masks, start: Int, num_ranks: int, ranks_per_node: int
) -> None:
    """Adds to `visited` `[words, tokens]` until each choice has a visited holder.

    `held` `[words, k, tokens]` are the ranks that hold each choice, `start` `[tokens]` the rank
    that comes first among equals.
    """
    top_k = held.shape[1]
    wanted = np.where(((held & visited[:, None]) != 0).any(0), 0, held)
    ranks = np.arange(num_ranks, dtype=np.int32)
    precedence = (ranks[:, None] - 1 - ranks) % num_ranks  # by start: R - 1 for the first
    tokens = np.arange(len(start))
    # One rank for every token that still misses one, then look again: at most R rounds.
    while True:
        is_left = (wanted != 0).any((0, 1))
        tokens, wanted = tokens[is_left], wanted[:, :, is_left]
        if len(tokens) == 0:
            return
        serves = _as_flags(wanted, num_ranks).sum(0, dtype=np.int32)
        if ranks_per_node < num_ranks:
            visits = _as_flags(visited[:, tokens], num_ranks)
            nodes = visits.reshape(len(tokens), -1, ranks_per_node).any(2)
            serves += top_k * (nodes.repeat(ranks_per_node, axis=1) & (serves > 0))
        # Three keys in one number, so that one argmax decides: ranks of visited nodes first (none
        # serves more than k), then by how many choices they serve, then by precedence, below R.
        chosen = (serves * num_ranks + precedence[start[tokens]]).argmax(1)
        bits = np.zeros((len(wanted), len(tokens)), dtype=np.uint64)
        word, bit = np.divmod(chosen, _WORD)
        bits[word, np.arange(len(tokens))] = np.uint64(1) << bit.astype(np.uint64)
        visited[:, tokens] |= bits
        wanted = np.where(((wanted & bits[:, None]) != 0).any(0), 0, wanted)


def experts_of(placement: Int, replicas: Int, rank: int) -> Int:
    """The experts on `rank` in the order of their slots: its own ascending, then replicas.

    Placement `[1, 0, 1]` with replicas `[[0], [1]]` puts `[1, 0]` on rank 0, `[0, 2, 1]` on 1.
    """
    own = np.flatnonzero(placement == rank)
    return np.concatenate([own, replicas[rank]]) if replicas.size else own


def holders_of(placement: Int, replicas: Int, num_ranks: int) -> Bool:
    """`[E, ranks]` bool: the ranks that hold each expert.

    Args:
        placement: `[E]` the rank of each expert.
        replicas: `[ranks, r]` further experts of each rank; empty for none.
        num_ranks: R.
    """
    holders: Bool = placement[:, None] == np.arange(num_ranks)
    if replicas.size:
        holders[replicas, np.arange(num_ranks)[:, None]] = True
    return holders
