"""The best placement of few experts, by trying every one."""

import math

import numpy as np
import numpy.typing as npt

from c2r.planning.placement.search import PlacementProblem
from c2r.types import Float, Int

# Bounds chosen by hand: trying all then takes about as long as a search. 8 experts on 4 ranks are
# 105 placements, 16 on 2 are 6,435, 12 on 4 are 15,400.
_MAX_PLACEMENTS = 50_000
_MAX_WORK = 200_000_000  # expert ids looked up, over all placements
_MAX_RANKS = 16  # the ranks that a set visits are bits of a 16-bit number
_CHUNK = 4_000_000  # sets times placements at a time: 8 MB of 16-bit numbers


def count_placements(num_experts: int, num_ranks: int) -> int:
    """Placements of even sizes that differ by more than the names of the ranks."""
    small, num_large = divmod(num_experts, num_ranks)
    num_small = num_ranks - num_large
    orders = math.prod(
        [math.factorial(small + 1)] * num_large + [math.factorial(small)] * num_small
    )
    names = math.factorial(num_large) * math.factorial(num_small)
    return math.factorial(num_experts) // (orders * names)


def is_small(problem: PlacementProblem) -> bool:
    """Whether `best_of_all` is quick: copies, one node, at most 50,000 placements, few sets."""
    num_ranks = problem.topology.num_ranks
    if problem.bottleneck is not None or problem.others:
        return False
    if problem.topology.num_nodes > 1 or num_ranks > _MAX_RANKS or problem.num_experts > 64:
        return False
    num_placements = count_placements(problem.num_experts, num_ranks)
    return num_placements <= _MAX_PLACEMENTS and num_placements * problem.sets.size <= _MAX_WORK


def best_of_all(problem: PlacementProblem) -> Int:
    """The placement of least excess load and, among those, least cost; the first on ties."""
    num_ranks = problem.topology.num_ranks
    placements = enumerate_placements(problem.num_experts, num_ranks)
    loads = np.stack([(placements == rank) @ problem.load for rank in range(num_ranks)])
    excess = np.maximum(loads - problem.load_limit, 0).sum(0)
    costs = _costs(problem, placements)
    best: Int = placements[np.lexsort([costs, excess])[0]].astype(np.int64)
    return best


def enumerate_placements(num_experts: int, num_ranks: int) -> npt.NDArray[np.uint8]:
    """Every placement of even sizes, `[placements, E]`, ranks numbered by their lowest expert."""
    small, num_large = divmod(num_experts, num_ranks)
    placed: npt.NDArray[np.uint8] = np.zeros((1, 0), dtype=np.uint8)
    sizes: Int = np.zeros((1, num_ranks), dtype=np.int64)
    for expert in range(num_experts):
        row, rank = np.nonzero(_may_take(sizes, small, num_large))
        placed = np.concatenate([placed[row], rank[:, None].astype(np.uint8)], axis=1)
        sizes = sizes[row]
        sizes[np.arange(len(row)), rank] += 1
        # Branches that the experts left cannot fill are cut here, not at the end.
        missing = np.maximum(small - sizes, 0).sum(1)
        kept: npt.NDArray[np.bool_] = missing <= num_experts - expert - 1
        placed, sizes = placed[kept], sizes[kept]
    return placed


def _may_take(sizes: Int, small: int, num_large: int) -> npt.NDArray[np.bool_]:
    """Ranks with room, and of the empty ones only the first."""
    large_left = (sizes > small).sum(1, keepdims=True) < num_large
    room = (sizes < small) | ((sizes == small) & large_left)
    # Names of ranks do not matter: a new rank is opened in order, so each placement comes once.
    opened = (sizes > 0).sum(1, keepdims=True)
    allowed: npt.NDArray[np.bool_] = room & (np.arange(sizes.shape[1]) <= opened)
    return allowed


def _costs(problem: PlacementProblem, placements: npt.NDArray[np.uint8]) -> Float:
    """Weighted copies of each placement: bits of the ranks that each set visits, counted."""
    num_ranks = problem.topology.num_ranks
    bits = np.arange(2**num_ranks)
    num_bits = sum((bits >> rank & 1 for rank in range(num_ranks)), np.zeros_like(bits))
    copies = num_bits.astype(np.uint8)
    masks: npt.NDArray[np.uint16] = (1 << placements.astype(np.uint32)).astype(np.uint16)
    costs = np.empty(len(placements))
    rows = max(1, _CHUNK // max(len(problem.sets), 1))
    weights = problem.counts.astype(np.float64)
    for start in range(0, len(placements), rows):
        chunk = masks[start : start + rows]
        visited: npt.NDArray[np.uint16] = chunk[:, problem.sets[:, 0]]
        for column in problem.sets.T[1:]:
            visited = visited | chunk[:, column]
        costs[start : start + rows] = copies[visited] @ weights
    return costs
