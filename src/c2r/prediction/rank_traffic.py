"""Which rank sends how many rows to which, predicted from a profile and a plan."""

from dataclasses import dataclass

import numpy as np

from c2r.plans import Plan, contiguous_placement, count_visits, rank_loads
from c2r.prediction.traffic import check_fit, known_sets
from c2r.profiling import CollaborationProfile
from c2r.types import Float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankTraffic:
    """Rows that a token on rank s (row) sends to rank r (column), mean over layers.

    A token lives on any rank with equal chance, whatever its experts, so rows are alike; each row
    adds up to the copies per token. Rows on the diagonal stay on their rank.

    Attributes:
        k_fold: `[ranks, ranks]`, one row per expert, experts in the order of their ids.
        contiguous: the same, one row per rank visited.
        placed: one row per rank visited, experts and replicas placed as planned.
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
        sums[1] += count_visits(contiguous[sets], counts, size) / counts.sum()
        sums[2] += (
            count_visits(layer_plan.ranks_of(sets, plan.topology), counts, size) / counts.sum()
        )
    k_fold, by_order, placed = (np.tile(row / profile.num_layers, (size, 1)) for row in sums)
    return RankTraffic(k_fold=k_fold, contiguous=by_order, placed=placed)
