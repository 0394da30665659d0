"""The time of what was measured, predicted for a cluster."""

from dataclasses import replace

from c2r.prediction import Cluster, Workload
from c2r.prediction.shares import measured_shares
from c2r.prediction.time import measured_time
from c2r.results import Measurement


def with_times(found: Measurement, cluster: Cluster, workload: Workload) -> Measurement:
    """The measurement, with the predicted times of a layer and a step on `cluster`."""
    step = measured_time(measured_shares(found), cluster, workload)
    return replace(found, layer_time=step.layer, step_time=step.total)
