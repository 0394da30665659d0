"""What the time model says of a case, from the routing that it replays."""

from dataclasses import replace

import numpy as np

from c2r.plans import ClusterTopology
from c2r.prediction import Cluster, ModelSizes, Phase, Workload
from c2r.prediction.shares import RankShares
from c2r.prediction.time import LayerTime, layer_time
from c2r.timing.cases import Case, TimedLayer
from c2r.types import Int


def workload_of(shape: TimedLayer) -> Workload:
    """The layer, forward and backward, as the time model knows it."""
    sizes = ModelSizes(
        hidden_size=shape.hidden_size,
        expert_size=shape.intermediate_size,
        shared_expert_size=0,
        num_layers=1,
        num_moe_layers=1,
        dense_parameters=0,
    )
    return Workload(
        sizes=sizes,
        tokens_per_rank=shape.num_tokens,
        phase=Phase.TRAINING,
        value_bytes=float(shape.dtype.itemsize),
    )


def shares_of(expert_ids: Int, ranks: Int, topology: ClusterTopology) -> RankShares:
    """What comes to each rank of a layer: of tokens `[..., k]`, computed on `ranks` `[..., k]`."""
    sets, computed = (each.reshape(-1, each.shape[-1]) for each in (expert_ids, ranks))
    return RankShares.of(computed, sets, np.ones(len(sets)), topology)


def predict_case(
    case: Case, num_chunks: int, shares: RankShares, cluster: Cluster, shape: TimedLayer
) -> LayerTime:
    """The time of a layer with these shares on the cluster; emulated devices read no weights."""
    if shape.device is not None:
        shares = replace(shares, expert_chances=None)
    return layer_time(shares, cluster, workload_of(shape), case.dispatcher, num_chunks)
