"""The optimum by trying every placement, one after the other: slow, plain, for tests only."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np


def all_placements(num_experts: int, sizes: list[int]) -> Iterator[np.ndarray]:
    """Every placement with these sizes, rank names included."""

    def fill(free: tuple[int, ...], rank: int) -> Iterator[dict[int, int]]:
        if rank == len(sizes):
            yield {}
            return
        for chosen in combinations(free, sizes[rank]):
            rest = tuple(expert for expert in free if expert not in chosen)
            for placed in fill(rest, rank + 1):
                yield placed | dict.fromkeys(chosen, rank)

    for placed in fill(tuple(range(num_experts)), 0):
        yield np.array([placed[expert] for expert in range(num_experts)])


def best_cut(pairs: np.ndarray, num_ranks: int) -> int:
    """The least co-activation between ranks, `pairs` symmetric `[E, E]`, R a divisor of E."""
    num_experts = len(pairs)
    return min(cut(pairs, placement) for placement in _even_placements(num_experts, num_ranks))


@cache
def _even_placements(num_experts: int, num_ranks: int) -> list[np.ndarray]:
    return list(all_placements(num_experts, [num_experts // num_ranks] * num_ranks))


def cut(pairs: np.ndarray, placement: np.ndarray) -> int:
    """Co-activation between experts of different ranks."""
    return int(pairs[placement[:, None] != placement].sum()) // 2


def count_copies_slowly(sets: np.ndarray, placement: np.ndarray) -> list[int]:
    """Distinct ranks of each set, by Python sets."""
    return [len({int(placement[expert]) for expert in row}) for row in sets]
