"""Which rank sends how many rows to which, predicted from a profile and a plan."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from c2r.measuring.traffic import check_fit, known_sets
from c2r.planning import Plan, contiguous_placement
from c2r.planning.placement import rank_loads
from c2r.profiling import CollaborationProfile

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankTraffic:
    """Rows that a token on rank s (row) sends to rank r (column), mean over layers.

    A token lives on any rank with equal chance, whatever its experts, so rows are alike; each row
    adds up to the copies per token, and the diagonal never leaves its rank.

    Attributes:
        k_fold: `[ranks, ranks]`, one row per expert, experts in the order of their ids.
        contiguous: the same, one row per rank visited.
        placed: one row per rank visited, experts placed as planned.
    """

    k_fold: Float
    contiguous: Float
    placed: Float


def predict_rank_traffic(profile: CollaborationProfile, plan: Plan) -> RankTraffic:
    """The rows between ranks behind the means of `predict_traffic`, and its errors."""
    check_fit(profile, plan)
    size = plan.topology.num_ranks
    sums = np.zeros((3, size))
    for index, (layer, layer_plan) in enumerate(zip(profile.layers, plan.layers, strict=True)):
        sets, counts = known_sets(index, layer, plan.topology)
        contiguous = contiguous_placement(layer.num_experts, size)
        loads = rank_loads(layer.load, contiguous, size)
        sums[0] += layer.top_k * loads / loads.sum()
        sums[1] += visits(sets, counts, contiguous, size)
        sums[2] += visits(sets, counts, layer_plan.placement, size)
    k_fold, by_order, placed = (np.tile(row / profile.num_layers, (size, 1)) for row in sums)
    return RankTraffic(k_fold=k_fold, contiguous=by_order, placed=placed)


def visits(sets: Int, counts: Int, placement: Int, num_ranks: int) -> Float:
    """Share of tokens that visit each rank, `[ranks]`; its sum is the copies per token.

    Sets `[[0, 1], [1, 2]]`, a token each, under the placement `[0, 0, 1]` give `[1, 0.5]`.

    Args:
        sets: `[sets, k]` expert ids.
        counts: `[sets]` tokens of each set.
        placement: `[E]` rank of each expert.
        num_ranks: ranks, those that hold nothing included.
    """
    is_visited = np.zeros((len(sets), num_ranks), dtype=bool)
    np.put_along_axis(is_visited, placement[sets], True, axis=1)
    shares: Float = counts @ is_visited / counts.sum()
    return shares
