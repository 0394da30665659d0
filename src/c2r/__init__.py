"""Collaboration-constrained routing for Mixture-of-Experts models.

    profile = c2r.profile(model, batches)
    plan = c2r.make_plan(profile, num_ranks=4)
    c2r.apply(model, plan)

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2r.adapters.huggingface import (
        ParallelOptions,
        apply,
        capture,
        constraint_report,
        expert_parameters,
        from_pretrained,
        gather_state_dict,
        load_parallel,
        parallelize,
        profile,
        reduce_gradients,
        register_router,
        remove,
        save_pretrained,
    )
    from c2r.errors import C2RError
    from c2r.evaluation import evaluate
    from c2r.measuring import predict_traffic
    from c2r.ops.constrained_topk import constrained_topk
    from c2r.planning import ClusterTopology, LayerPlan, Plan, make_plan
    from c2r.profiling import CollaborationProfile, LayerProfile, measure_collaboration

_HOMES = {
    "C2RError": "c2r.errors",
    "ClusterTopology": "c2r.planning",
    "CollaborationProfile": "c2r.profiling",
    "LayerPlan": "c2r.planning",
    "LayerProfile": "c2r.profiling",
    "ParallelOptions": "c2r.adapters.huggingface",
    "Plan": "c2r.planning",
    "apply": "c2r.adapters.huggingface",
    "capture": "c2r.adapters.huggingface",
    "constrained_topk": "c2r.ops.constrained_topk",
    "constraint_report": "c2r.adapters.huggingface",
    "evaluate": "c2r.evaluation",
    "expert_parameters": "c2r.adapters.huggingface",
    "from_pretrained": "c2r.adapters.huggingface",
    "gather_state_dict": "c2r.adapters.huggingface",
    "load_parallel": "c2r.adapters.huggingface",
    "make_plan": "c2r.planning",
    "measure_collaboration": "c2r.profiling",
    "parallelize": "c2r.adapters.huggingface",
    "predict_traffic": "c2r.measuring",
    "profile": "c2r.adapters.huggingface",
    "reduce_gradients": "c2r.adapters.huggingface",
    "register_router": "c2r.adapters.huggingface",
    "remove": "c2r.adapters.huggingface",
    "save_pretrained": "c2r.adapters.huggingface",
}

__all__ = [
    "C2RError",
    "ClusterTopology",
    "CollaborationProfile",
    "LayerPlan",
    "LayerProfile",
    "ParallelOptions",
    "Plan",
    "apply",
    "capture",
    "constrained_topk",
    "constraint_report",
    "evaluate",
    "expert_parameters",
    "from_pretrained",
    "gather_state_dict",
    "load_parallel",
    "make_plan",
    "measure_collaboration",
    "parallelize",
    "predict_traffic",
    "profile",
    "reduce_gradients",
    "register_router",
    "remove",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'c2r' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
