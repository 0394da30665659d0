"""What a placement costs: ranks and nodes that a token is sent to, and the load of ranks.

The mean number of distinct ranks that hold a token's experts is the connectivity metric of the
hypergraph whose vertices are the experts and whose hyperedges are the routing sets.
"""

import numpy as np

from c2r.plans.topology import ClusterTopology
from c2r.types import Counts, Float, Int


def count_distinct(ranks: Int) -> Int:
    """Distinct values of each row, `[rows]`, of ranks or nodes `[rows, k]`."""
    ranks = np.sort(ranks, axis=1)
    changes: Int = np.count_nonzero(ranks[:, 1:] != ranks[:, :-1], axis=1)
    return 1 + changes


def mean_distinct(ranks: Int, counts: Counts) -> float:
    """Copies per token whose experts are computed on `ranks` `[sets, k]`, for `counts` tokens."""
    return float(counts @ count_distinct(ranks) / counts.sum())


def count_copies(sets: Int, placement: Int) -> Int:
    """Distinct ranks that hold the experts of each set.

    Sets `[[0, 1], [1, 2]]` under the placement `[0, 0, 1]` visit `[1, 2]` ranks.

    Args:
        sets: `[sets, k]` expert ids.
        placement: `[E]` rank of each expert; nodes serve as well.

    Returns:
        `[sets]` int64 between 1 and k.
    """
    return count_distinct(placement[sets])


def mean_copies(sets: Int, counts: Counts, placement: Int) -> float:
    """Copies per token: the mean of `count_copies` over tokens, the token's own rank counted.

    Args:
        sets: `[sets, k]` expert ids.
        counts: `[sets]` tokens, or any non-negative weights, of each set; not all zero.
        placement: `[E]` rank of each expert.
    """
    return mean_distinct(placement[sets], counts)


def remote_share(num_ranks: int) -> float:
    """Share of the copies that leave the token's own rank: 1 - 1 / ranks.

    A token lives on any rank with equal chance, whatever its experts, so of its copies the one
    to its own rank is there with probability copies / ranks.
    """
    return 1 - 1 / num_ranks


def mean_node_copies(sets: Int, counts: Counts, placement: Int, topology: ClusterTopology) -> float:
    """Distinct nodes that hold a token's experts, mean over tokens, its own node counted."""
    return mean_copies(sets, counts, placement // topology.ranks_per_node)


def rank_loads(load: Counts, placement: Int, num_ranks: int) -> Float:
    """Tokens that each rank's experts process, `[ranks]`, from the tokens of each expert, `[E]`."""
    loads = np.bincount(placement, weights=load.astype(np.float64), minlength=num_ranks)
    return loads.astype(np.float64, copy=False)


def row_loads(ranks: Int, counts: Counts, num_ranks: int) -> Float:
    """The same, `[ranks]`, from the ranks `[sets, k]` that compute the experts of each set."""
    weights = np.repeat(counts.astype(np.float64), ranks.shape[1])
    return rank_loads(weights, ranks.ravel(), num_ranks)


def load_max_over_mean(loads: Counts) -> float:
    """The largest of `loads` over their mean; 1 where all are zero."""
    total = float(loads.sum())
    return float(loads.max()) * len(loads) / total if total > 0 else 1.0


def count_visits(ranks: Int, counts: Counts, num_ranks: int) -> Float:
    """Tokens that visit each rank, `[ranks]`: the rows that arrive there when sent once per rank.

    Ranks `[[0, 0], [0, 1]]`, of 3 and 1 tokens, give `[4, 1]`.

    Args:
        ranks: `[sets, k]` ranks that compute the experts of each set; nodes serve as well.
        counts: `[sets]` tokens of each set.
        num_ranks: ranks, those that nobody visits included.
    """
    is_visited = np.zeros((len(ranks), num_ranks), dtype=bool)
    np.put_along_axis(is_visited, ranks, True, axis=1)
    visits: Float = counts.astype(np.float64) @ is_visited
    return visits
