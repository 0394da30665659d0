"""A first placement by mt-kahypar, the multilevel hypergraph partitioner.

Experts are vertices, routing sets hyperedges weighted by their counts, and the KM1 objective is
copies minus one. It is asked for a part of the hyperedges only, the heaviest: the search that
follows sees all of them. Where the platform has no mt-kahypar the search starts without it.
"""

import importlib
import threading
from functools import cache
from typing import Any

import numpy as np

from c2r.planning.placement.balance import repair_sizes
from c2r.plans.contiguous import rank_sizes
from c2r.types import Counts, Float, Int

_MAX_PINS = 16_384
"""Expert ids of the sets handed over: bounds its time, of which the search makes more. By hand."""
_LOCK = threading.Lock()  # its seed is one for the whole process
_TOTAL_WEIGHT = 2**28  # Weights and their sums are 32-bit integers there.


def partition_hypergraph(
    sets: Int, counts: Counts, num_experts: int, num_ranks: int, seed: int
) -> Int | None:
    """A placement `[E]` of even sizes by mt-kahypar; None where it is not installed.

    The same seed gives the same placement: the preset is deterministic and runs in one thread.
    """
    with _LOCK:
        mtkahypar, initializer = start_mtkahypar()
    if mtkahypar is None or num_ranks < 2 or len(sets) == 0 or sets.shape[1] < 2:
        return None
    heaviest = np.sort(np.argsort(-counts, kind="stable")[: _MAX_PINS // sets.shape[1]])
    # Integers as large as they may be: heavy sets keep their proportions, the rarest weigh 1.
    scale = _TOTAL_WEIGHT / max(float(counts[heaviest].sum()) * sets.shape[1], 1e-300)
    weights = np.maximum(np.rint(counts[heaviest] * scale), 1).astype(np.int64)
    with _LOCK:
        mtkahypar.set_seed(seed)
        context = initializer.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
        context.logging = False
        context.set_partitioning_parameters(num_ranks, 0.0, mtkahypar.Objective.KM1)
        if num_experts % num_ranks:
            context.set_individual_target_block_weights(rank_sizes(num_experts, num_ranks).tolist())
        hypergraph = initializer.create_hypergraph(
            context,
            num_experts,
            len(heaviest),
            sets[heaviest].tolist(),
            [1] * num_experts,
            weights.tolist(),
        )
        partition = hypergraph.partition(context).get_partition()
    # Even where no imbalance is allowed, ranks may come out uneven.
    return repair_sizes(
        np.array(partition, dtype=np.int64), num_ranks, pair_weights(sets, counts, num_experts)
    )


@cache
def start_mtkahypar() -> tuple[Any, Any]:
    """The library and its initializer, one thread; None twice where it is not installed."""
    try:
        mtkahypar = importlib.import_module("mtkahypar")
    except ImportError:
        return None, None
    return mtkahypar, mtkahypar.initialize(1, False)


def pair_weights(sets: Int, counts: Counts, num_experts: int) -> Float:
    """`[E, E]` weight of the sets that hold both experts; the diagonal is zero."""
    first, second = np.triu_indices(sets.shape[1], 1)
    keys = (sets[:, first] * num_experts + sets[:, second]).ravel()
    weights = np.repeat(counts.astype(np.float64), len(first))
    pairs = np.bincount(keys, weights=weights, minlength=num_experts**2).astype(np.float64)
    square = pairs.reshape(num_experts, num_experts)
    return square + square.T
