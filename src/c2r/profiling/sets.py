"""Distinct routing sets with their counts, in bounded memory.

Pairs lose information when a token chooses more than two experts, so a profile keeps the sets
themselves. While there are at most `MAX_DISTINCT_SETS` of them they are counted exactly. Beyond,
they become a uniform sample of tokens: every token draws a random priority and the tokens with the
lowest priorities stay (bottom-k sampling), which two profiles can merge without losing uniformity.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.types import Int

MAX_DISTINCT_SETS = 131_072
_BUFFERED_TOKENS = 65_536  # a long sort costs less than many short ones, and a merge after each


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingSets:
    """The routing sets of `num_tokens` tokens of one layer.

    `experts` `[sets, k]` int64 holds ascending expert ids, `counts` `[sets]` int64 the tokens that
    chose each set. Where `priorities` `[sets]` is None the rows are distinct and the counts exact.
    Otherwise each row is one token of a uniform sample without replacement, its count is 1 and
    rows may repeat.
    """

    experts: Int
    counts: Int
    num_tokens: int
    priorities: npt.NDArray[np.float64] | None = None
    capacity: int = MAX_DISTINCT_SETS

    @classmethod
    def empty(cls, top_k: int, capacity: int = MAX_DISTINCT_SETS) -> "RoutingSets":
        """No tokens yet."""
        experts = np.empty((0, top_k), dtype=np.int64)
        return cls(experts=experts, counts=experts[:, 0], num_tokens=0, capacity=capacity)

    @classmethod
    def count(cls, expert_ids: Int, rng: np.random.Generator, capacity: int) -> "RoutingSets":
        """Counts the sets of `expert_ids` `[tokens, k]`, in any order within a row."""
        experts, counts = distinct_rows(np.sort(expert_ids, axis=1))
        sets = cls(experts=experts, counts=counts, num_tokens=len(expert_ids), capacity=capacity)
        return sets if len(experts) <= capacity else sets._sampled(rng)

    @property
    def is_exact(self) -> bool:
        """Whether every token is counted, not only a sample."""
        return self.priorities is None

    @property
    def sample_size(self) -> int:
        """Tokens behind the counts: all of them, or the sample's size."""
        return int(self.counts.sum())

    def distinct(self) -> tuple[Int, Int]:
        """Distinct sets `[sets, k]` and their counts `[sets]`, of all tokens or of the sample."""
        if self.is_exact:
            return self.experts, self.counts
        return distinct_rows(self.experts)

    def merge(self, other: "RoutingSets", rng: np.random.Generator) -> "RoutingSets":
        """The sets of both; `rng` draws priorities for tokens that were counted exactly so far."""
        if self.is_exact and other.is_exact:
            experts, counts = distinct_rows(
                np.concatenate([self.experts, other.experts]),
                np.concatenate([self.counts, other.counts]),
            )
            merged = RoutingSets(
                experts=experts,
                counts=counts,
                num_tokens=self.num_tokens + other.num_tokens,
                capacity=self.capacity,
            )
            return merged if len(experts) <= self.capacity else merged._sampled(rng)
        ours, theirs = self._sampled(rng), other._sampled(rng)
        return _lowest_priorities(
            np.concatenate([ours.experts, theirs.experts]),
            np.concatenate([ours._drawn, theirs._drawn]),
            self.num_tokens + other.num_tokens,
            self.capacity,
        )

    def add(self, expert_ids: Int, rng: np.random.Generator) -> "RoutingSets":
        """The sets of these tokens and of `expert_ids` `[tokens, k]` more.

        As merging with their count, but while sampling only tokens that enter are sorted.
        """
        if self.is_exact or self.sample_size < self.capacity:
            return self.merge(RoutingSets.count(expert_ids, rng, self.capacity), rng)
        drawn = rng.random(len(expert_ids))
        enters = drawn < self._drawn.max()
        return _lowest_priorities(
            np.concatenate([self.experts, np.sort(expert_ids[enters], axis=1)]),
            np.concatenate([self._drawn, drawn[enters]]),
            self.num_tokens + len(expert_ids),
            self.capacity,
        )

    @property
    def _drawn(self) -> npt.NDArray[np.float64]:
        assert self.priorities is not None, "priorities were not drawn"
        return self.priorities

    def _sampled(self, rng: np.random.Generator) -> "RoutingSets":
        if self.priorities is not None:
            return self
        tokens = np.repeat(self.experts, self.counts, axis=0)
        return _lowest_priorities(tokens, rng.random(len(tokens)), self.num_tokens, self.capacity)


class SetCounter:
    """Counts the routing sets of a stream of tokens; `rng` draws the sample beyond `capacity`."""

    def __init__(
        self, top_k: int, rng: np.random.Generator, capacity: int = MAX_DISTINCT_SETS
    ) -> None:
        self._sets = RoutingSets.empty(top_k, capacity)
        self._rng = rng
        self._buffer: list[npt.NDArray[np.int32]] = []
        self._num_buffered = 0

    @property
    def num_tokens(self) -> int:
        """Tokens taken so far."""
        return self._sets.num_tokens + self._num_buffered

    def add(self, expert_ids: npt.NDArray[Any]) -> None:
        """Takes the ids `[tokens, k]` of further tokens, in any order within a row."""
        self._buffer.append(expert_ids.astype(np.int32))
        self._num_buffered += len(expert_ids)
        if self._num_buffered >= _BUFFERED_TOKENS:
            self.build()

    def build(self) -> RoutingSets:
        """The sets so far."""
        if self._num_buffered:
            ids = np.concatenate(self._buffer).astype(np.int64)
            self._sets = self._sets.add(ids, self._rng)
        self._buffer, self._num_buffered = [], 0
        return self._sets


def _lowest_priorities(
    experts: Int, priorities: npt.NDArray[np.float64], num_tokens: int, capacity: int
) -> RoutingSets:
    kept = np.arange(len(priorities))
    if len(priorities) > capacity:
        kept = np.argpartition(priorities, capacity)[:capacity]
    return RoutingSets(
        experts=experts[kept],
        counts=np.ones(len(kept), dtype=np.int64),
        num_tokens=num_tokens,
        priorities=priorities[kept],
        capacity=capacity,
    )


def distinct_rows(rows: Int, counts: Int | None = None) -> tuple[Int, Int]:
    """Distinct rows of `rows` `[n, k]` in lexicographic order and the sum of their counts.

    `counts` `[n]` are the rows' own counts, 1 each where None.
    """
    if len(rows) == 0:
        return rows, np.empty(0, dtype=np.int64)
    bits = max(int(rows.max()).bit_length(), 1)
    words = _pack(rows, bits)
    if len(words) == 1 and counts is None:
        ordered = np.sort(words[0])
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        distinct = _unpack(ordered[starts], rows.shape[1], bits)
        return distinct, np.diff(np.append(starts, len(rows)))
    # Rows that are counted already come in sorted runs, which a stable sort only merges.
    order = np.argsort(words[0], kind="stable") if len(words) == 1 else np.lexsort(words[::-1])
    differs = np.zeros(len(rows), dtype=bool)
    differs[0] = True
    for word in words:
        ordered = word[order]
        differs[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(differs)
    ones = np.ones(len(rows), dtype=np.int64)
    sums = np.add.reduceat((ones if counts is None else counts)[order], starts)
    return rows[order[starts]], sums


def _pack(rows: Int, bits: int) -> list[npt.NDArray[np.uint64]]:
    """Rows of ids of that many bits as few words `[n]`, in the same lexicographic order."""
    per_word = 64 // bits
    words = []
    for start in range(0, rows.shape[1], per_word):
        word = np.zeros(len(rows), dtype=np.uint64)
        for column in rows[:, start : start + per_word].T:
            word = (word << np.uint64(bits)) | column.astype(np.uint64)
        words.append(word)
    return words


def _unpack(word: npt.NDArray[np.uint64], width: int, bits: int) -> Int:
    """The rows `[n, width]` that `_pack` put in one word."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint64) * np.uint64(bits)
    mask = np.uint64((1 << bits) - 1)
    return ((word[:, None] >> shifts) & mask).astype(np.int64)
