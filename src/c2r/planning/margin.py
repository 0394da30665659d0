"""How far below a bound on load to plan, so that it holds on text that was not profiled."""

import math

import numpy as np

from c2r.plans.contiguous import contiguous_placement
from c2r.plans.topology import ClusterTopology
from c2r.profiling import LayerProfile
from c2r.types import Int

_ERRORS = 2.0
"""Standard errors kept away from the bound: about 95 % of ranks then stay within it."""
_TOKENS_PER_DRAW = 5.0
"""Tokens of a text that tell as much as one drawn by itself, for neighbours choose alike: on the
embedded model, windows of 512 tokens spread 4.8 times as far in variance as single tokens would."""
_LARGEST_SHARE = 0.5  # of what the bound allows: no more is given up for safety


def load_margin(
    layer: LayerProfile, sets: Int, counts: Int, topology: ClusterTopology, max_load: float
) -> float:
    r"""The margin on `max_load` for the sampling error of a profile of `layer.num_tokens` tokens.

    A rank's load over the mean is estimated with the standard error

    .. math:: s \frac{R}{k} \sqrt{5 / n},

    s the standard deviation over tokens of the experts that a token uses on a rank, pooled over
    ranks with the experts in the order of their ids. Two of them are kept, but at most half of
    `max_load` - 1. What another mixture of texts does is no sampling error and not in it.

    Args:
        layer: what was counted.
        sets: `[sets, k]`.
        counts: `[sets]`.
        topology: the devices.
        max_load: bound on the largest rank load over the mean.
    """
    num_ranks, top_k = topology.num_ranks, sets.shape[1]
    ranks = contiguous_placement(layer.num_experts, num_ranks)[sets]
    rows = (ranks[:, :, None] == np.arange(num_ranks)).sum(1, dtype=np.float64)
    weights = counts / counts.sum()
    variance = float(np.mean(weights @ rows**2 - (weights @ rows) ** 2))
    draws = max(layer.num_tokens / _TOKENS_PER_DRAW, 1.0)
    error = math.sqrt(max(variance, 0.0) / draws) * num_ranks / top_k
    return float(max(min(_ERRORS * error, _LARGEST_SHARE * (max_load - 1)), 0.0))
