"""Placements with equally many experts per rank: contiguous, repaired, and packed by load."""

import numpy as np

from c2r.plans.copies import rank_loads
from c2r.types import Counts, Float, Int

_PACKING_RESTARTS = 64  # packings of microseconds each; chosen by hand


def canonical_placement(placement: Int, num_ranks: int, num_nodes: int = 1) -> Int:
    """The same placement with nodes, and ranks within a node, numbered by their lowest expert.

    `[1, 0, 1, 0]` on one node becomes `[0, 1, 0, 1]`.
    """
    ranks_per_node = num_ranks // num_nodes
    nodes = _by_first_use(placement // ranks_per_node, num_nodes)[placement // ranks_per_node]
    nested = nodes * ranks_per_node + placement % ranks_per_node
    # Ranks first used earlier come first; dividing by node keeps each within its node.
    first = np.full(num_ranks, len(placement))
    np.minimum.at(first, nested, np.arange(len(placement)))
    order = np.lexsort([first, np.arange(num_ranks) // ranks_per_node])
    renumbered: Int = np.argsort(order)[nested]
    return renumbered


def _by_first_use(labels: Int, num_labels: int) -> Int:
    """`[labels]` the new number of each label, by the first expert that has it."""
    first = np.full(num_labels, len(labels))
    np.minimum.at(first, labels, np.arange(len(labels)))
    return np.argsort(np.argsort(first, kind="stable"))


def repair_sizes(placement: Int, num_ranks: int, affinity: Float) -> Int:
    """Moves experts from overfull to underfull ranks until sizes differ by at most one.

    Args:
        placement: `[E]` rank of each expert, of any sizes.
        num_ranks: R.
        affinity: `[E, E]` how much each expert wants to be with each other; of the possible moves
            the one that loses least is made.
    """
    placement = placement.copy()
    while True:
        sizes = np.bincount(placement, minlength=num_ranks)
        if sizes.max() - sizes.min() <= 1:
            return placement
        attraction = affinity @ np.eye(num_ranks)[placement]
        gains = attraction - attraction[np.arange(len(placement)), placement][:, None]
        from_full = sizes[placement] == sizes.max()
        gains[~from_full] = -np.inf
        gains[:, sizes > sizes.min()] = -np.inf
        expert, rank = np.unravel_index(np.argmax(gains), gains.shape)
        placement[expert] = rank


def pack_by_load(load: Counts, num_ranks: int, limit: float, rng: np.random.Generator) -> Int:
    """A placement of equal sizes with a small largest rank load.

    Heaviest experts first, each to the lightest rank with room; then swaps; then new starts from
    random orders, until the largest rank load is at most `limit` or nothing better is found.
    """
    load = load.astype(np.float64)
    order = np.argsort(-load, kind="stable")
    best = _level_by_swaps(_pack_in_order(load, order, num_ranks), load, num_ranks)
    for _ in range(_PACKING_RESTARTS):
        if rank_loads(load, best, num_ranks).max() <= limit:
            break
        # Heavy ones first still, but not strictly: factors of 0.5 to 1.5 swap near neighbours.
        noisy = np.argsort(-load * rng.uniform(0.5, 1.5, len(load)), kind="stable")
        other = _level_by_swaps(_pack_in_order(load, noisy, num_ranks), load, num_ranks)
        best = min(best, other, key=lambda placed: rank_loads(load, placed, num_ranks).max())
    return best


def _pack_in_order(load: Float, order: Int, num_ranks: int) -> Int:
    """Puts experts, in `order`, on the lightest rank with room; sizes differ by at most one."""
    placement = np.zeros(len(load), dtype=np.int64)
    sums = np.zeros(num_ranks)
    sizes = np.zeros(num_ranks, dtype=np.int64)
    small, num_large = divmod(len(load), num_ranks)
    for expert in order:
        # A rank may take one more than E // R only while fewer than E % R ranks have.
        full = sizes >= small + (np.count_nonzero(sizes > small) < num_large)
        rank = int(np.argmin(np.where(full, np.inf, sums)))
        placement[expert] = rank
        sums[rank] += load[expert]
        sizes[rank] += 1
    return placement


def _level_by_swaps(placement: Int, load: Float, num_ranks: int) -> Int:
    """Swaps an expert of the heaviest rank for a lighter one while the heavier of the two falls."""
    placement = placement.copy()
    while True:
        sums = rank_loads(load, placement, num_ranks)
        heaviest = int(np.argmax(sums))
        mine = np.flatnonzero(placement == heaviest)
        # [mine, E]: the heavier of the two ranks after each swap, sizes unchanged.
        shift = load[mine][:, None] - load[None, :]
        worse = np.maximum(sums[heaviest] - shift, sums[placement][None, :] + shift)
        worse[:, mine] = np.inf
        if worse.size == 0 or worse.min() >= sums[heaviest] * (1 - 1e-12):
            return placement
        row, theirs = np.unravel_index(np.argmin(worse), worse.shape)
        placement[mine[row]], placement[theirs] = placement[theirs], heaviest
