"""Routing sets for tests: random ones, and the C2R authors' matrices where they are."""

from pathlib import Path

import numpy as np
import pytest

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "c2r-reference"


def random_sets(num_experts, top_k, num_sets, seed, groups=1):
    """Distinct sets and counts; experts of a group are chosen together more often."""
    rng = np.random.default_rng(seed)
    popularity = rng.gumbel(size=num_experts)
    home = rng.integers(groups, size=(num_sets, 1))
    scores = popularity + 2.0 * (np.arange(num_experts) % groups == home)
    noisy = scores + rng.gumbel(size=(num_sets, num_experts))
    sets = np.sort(np.argsort(-noisy, axis=1)[:, :top_k], axis=1)
    sets, counts = np.unique(sets, axis=0, return_counts=True)
    return sets, counts, load_of(sets, counts, num_experts)


def load_of(sets, counts, num_experts):
    weights = np.repeat(counts, sets.shape[1])
    return np.bincount(sets.ravel(), weights=weights, minlength=num_experts)


def random_pairs(num_experts, seed):
    """A symmetric matrix of counts with a zero diagonal, some of them zero."""
    rng = np.random.default_rng(seed)
    counts = np.triu(np.exp(rng.normal(5, 3, (num_experts, num_experts))).astype(np.int64), 1)
    counts[rng.random(counts.shape) < 0.2] = 0
    return counts + counts.T


def pairs_as_sets(pairs):
    first, second = np.nonzero(np.triu(pairs, 1))
    return np.stack([first, second], axis=1), pairs[first, second]


def reference_matrices(name):
    """`[32, 8, 8]` counts of the file, or a skipped test."""
    from c2r.adapters.engines.c2r_pickle import read_c2r_pickle

    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    profile = read_c2r_pickle(path, top_k=2)
    return np.stack([layer.coactivation for layer in profile.layers])
