"""What one batch's routing sends and how collaborative it is, for the log of a training."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from c2r.evaluation.tally import RoutingTally
from c2r.planning import Plan
from c2r.planning.placement import load_max_over_mean
from c2r.profiling import ProfileBuilder, measure_collaboration
from c2r.traces import RoutingTrace


def without_padding(trace: RoutingTrace, mask: Tensor) -> RoutingTrace:
    """The rows of the tokens that `mask` `[tokens]` keeps, without weights."""
    layers = (
        replace(
            layer,
            expert_ids=layer.expert_ids[mask],
            weights=None,
            scores=layer.scores[mask].detach(),
        )
        for layer in trace.layers
    )
    return RoutingTrace(layers=tuple(layers))


def routing_metrics(trace: RoutingTrace, plan: Plan) -> dict[str, float]:
    """Copies per token, rank load and effective collaborators, means over layers."""
    tally = RoutingTally.count(trace, plan)
    builder = ProfileBuilder()
    builder.update(trace)
    profile = builder.build()
    assert profile is not None, "a trace was counted"
    collaborators = [
        measure_collaboration(layer).effective_collaborators for layer in profile.layers
    ]
    return {
        "copies_per_token": float((tally.copies / tally.num_tokens).mean()),
        "rank_load_max_over_mean": float(
            np.mean([load_max_over_mean(rows) for rows in tally.rank_rows])
        ),
        "effective_collaborators": float(np.mean(collaborators)),
    }
