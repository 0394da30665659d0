"""The time of what was measured, predicted for a cluster."""

from dataclasses import replace

from c2r.prediction import Cluster, Workload
from c2r.prediction.shares import RankShares, measured_shares
from c2r.prediction.time import measured_time
from c2r.results import Measurement


def with_times(found: Measurement, cluster: Cluster, workload: Workload) -> Measurement:
    """The measurement, with the predicted times of a layer and a step on `cluster`."""
    step = measured_time(shares_of(found), cluster, workload)
    return replace(found, layer_time=step.layer, step_time=step.total)


def shares_of(found: Measurement) -> tuple[RankShares, ...]:
    """What came to each rank in each layer while it was measured."""
    return measured_shares(found.rank_rows, found.rank_visits, found.node_visits)
