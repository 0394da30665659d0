"""Traffic and collaboration of one batch's routing, for the log of a training."""

import numpy as np

from c2r.measuring import RoutingTally
from c2r.plans import Plan
from c2r.profiling import measure_collaboration
from c2r.traces import ProfileBuilder, RoutingTrace


def routing_metrics(trace: RoutingTrace, plan: Plan) -> dict[str, float]:
    """Copies per token, rank load and effective collaborators, means over layers."""
    means = RoutingTally.count(trace, plan).means()
    builder = ProfileBuilder()
    builder.update(trace)
    profile = builder.build()
    assert profile is not None, "a trace was counted"
    collaborators = [
        measure_collaboration(layer).effective_collaborators for layer in profile.layers
    ]
    return {
        "copies_per_token": means["copies"],
        "rank_load_max_over_mean": means["rank_load_max_over_mean"],
        "effective_collaborators": float(np.mean(collaborators)),
    }
