"""Experts in the order of their ids: the placement without a plan."""

import numpy as np

from c2r.types import Int


def contiguous_placement(num_experts: int, num_ranks: int) -> Int:
    """Experts in the order of their ids; the first E % R ranks hold one expert more.

    5 experts on 2 ranks give `[0, 0, 0, 1, 1]`.
    """
    return np.repeat(np.arange(num_ranks), rank_sizes(num_experts, num_ranks))


def rank_sizes(num_experts: int, num_ranks: int) -> Int:
    """Experts of each rank, `[R]`, differing by at most one."""
    small, num_large = divmod(num_experts, num_ranks)
    return np.where(np.arange(num_ranks) < num_large, small + 1, small)
