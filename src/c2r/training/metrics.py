"""Traffic and collaboration of one batch's routing, for the log of a training."""

import numpy as np

from c2r.measuring import RoutingTally
from c2r.plans import Plan
from c2r.profiling import measure_collaboration
from c2r.traces import LayerTrace, ProfileBuilder, RoutingTrace


def routing_metrics(trace: RoutingTrace, plan: Plan) -> dict[str, float]:
    """What one batch routed, means over layers.

    `copies_per_token` and `rank_load_max_over_mean` are those of the plan's ranks;
    `choices_changed` is the share of plain top-k's choices that the routing did not take, and
    `effective_collaborators` that of `measure_collaboration`.

    Args:
        trace: from `c2r.capture`, of a forward pass.
        plan: that the model runs under, or whose ranks are counted.
    """
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
        "choices_changed": float(np.mean([_changed(layer) for layer in trace.layers])),
        "effective_collaborators": float(np.mean(collaborators)),
    }


def _changed(layer: LayerTrace) -> float:
    """The share of the k best-scored experts that a token does not use; 0 without tokens."""
    best = layer.scores.topk(layer.expert_ids.shape[-1], dim=-1).indices
    is_used = (best[..., None] == layer.expert_ids[..., None, :]).any(-1)
    return 1.0 - float(is_used.float().mean()) if is_used.numel() else 0.0
