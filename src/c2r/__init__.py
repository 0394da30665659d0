"""Collaboration-constrained routing for Mixture-of-Experts models.

    profile = c2r.profile(model, batches)
    plan = c2r.make_plan(profile, num_ranks=4)
    c2r.apply(model, plan)

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2r.adapters.checkpoints import permute_checkpoint, undo_permutation
    from c2r.adapters.engines import export_plan, import_traces
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
    from c2r.evaluation import (
        TaskRequest,
        compare_accuracy,
        compare_evaluations,
        evaluate,
        evaluate_tasks,
        load_tasks,
        measure_plan,
    )
    from c2r.measuring import predict_traffic
    from c2r.ops.constrained_topk import constrained_topk
    from c2r.planning import ClusterTopology, LayerPlan, Plan, make_plan, with_policy
    from c2r.profiling import CollaborationProfile, LayerProfile, measure_collaboration
    from c2r.training import FinetuneSettings, finetune

_HOMES = {
    "C2RError": "c2r.errors",
    "ClusterTopology": "c2r.planning",
    "CollaborationProfile": "c2r.profiling",
    "FinetuneSettings": "c2r.training",
    "LayerPlan": "c2r.planning",
    "LayerProfile": "c2r.profiling",
    "ParallelOptions": "c2r.adapters.huggingface",
    "Plan": "c2r.planning",
    "TaskRequest": "c2r.evaluation",
    "apply": "c2r.adapters.huggingface",
    "capture": "c2r.adapters.huggingface",
    "compare_accuracy": "c2r.evaluation",
    "compare_evaluations": "c2r.evaluation",
    "constrained_topk": "c2r.ops.constrained_topk",
    "constraint_report": "c2r.adapters.huggingface",
    "evaluate": "c2r.evaluation",
    "evaluate_tasks": "c2r.evaluation",
    "export_plan": "c2r.adapters.engines",
    "finetune": "c2r.training",
    "from_pretrained": "c2r.adapters.huggingface",
    "import_traces": "c2r.adapters.engines",
    "make_plan": "c2r.planning",
    "measure_collaboration": "c2r.profiling",
    "measure_plan": "c2r.evaluation",
    "permute_checkpoint": "c2r.adapters.checkpoints",
    "expert_parameters": "c2r.adapters.huggingface",
    "gather_state_dict": "c2r.adapters.huggingface",
    "load_parallel": "c2r.adapters.huggingface",
    "load_tasks": "c2r.evaluation",
    "parallelize": "c2r.adapters.huggingface",
    "predict_traffic": "c2r.measuring",
    "profile": "c2r.adapters.huggingface",
    "reduce_gradients": "c2r.adapters.huggingface",
    "register_router": "c2r.adapters.huggingface",
    "remove": "c2r.adapters.huggingface",
    "save_pretrained": "c2r.adapters.huggingface",
    "with_policy": "c2r.planning",
    "undo_permutation": "c2r.adapters.checkpoints",
}

__all__ = [
    "C2RError",
    "ClusterTopology",
    "CollaborationProfile",
    "FinetuneSettings",
    "LayerPlan",
    "LayerProfile",
    "ParallelOptions",
    "Plan",
    "TaskRequest",
    "apply",
    "capture",
    "compare_accuracy",
    "compare_evaluations",
    "constrained_topk",
    "constraint_report",
    "evaluate",
    "evaluate_tasks",
    "expert_parameters",
    "export_plan",
    "finetune",
    "from_pretrained",
    "gather_state_dict",
    "import_traces",
    "load_parallel",
    "load_tasks",
    "make_plan",
    "measure_collaboration",
    "measure_plan",
    "parallelize",
    "permute_checkpoint",
    "predict_traffic",
    "profile",
    "reduce_gradients",
    "register_router",
    "remove",
    "save_pretrained",
    "undo_permutation",
    "with_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'c2r' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
