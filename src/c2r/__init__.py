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
    from c2r.measuring import RunResult, measure, run
    from c2r.ops.constrained_topk import constrained_topk
    from c2r.planning import make_plan, with_policy
    from c2r.plans import ClusterTopology, LayerPlan, Plan
    from c2r.prediction import predict_traffic
    from c2r.profiling import CollaborationProfile, LayerProfile, measure_collaboration
    from c2r.results import Measurement, SweepResult, Target
    from c2r.sweeps import SweepRequest, sweep
    from c2r.tasks import (
        TaskRequest,
        compare_accuracy,
        compare_evaluations,
        evaluate,
        load_tasks,
    )
    from c2r.training import FinetuneSettings, finetune

_ROOMS = {
    "adapters.checkpoints": ("permute_checkpoint", "undo_permutation"),
    "adapters.engines": ("export_plan", "import_traces"),
    "adapters.huggingface": (
        "ParallelOptions",
        "apply",
        "capture",
        "constraint_report",
        "expert_parameters",
        "from_pretrained",
        "gather_state_dict",
        "load_parallel",
        "parallelize",
        "profile",
        "reduce_gradients",
        "register_router",
        "remove",
        "save_pretrained",
    ),
    "errors": ("C2RError",),
    "measuring": ("RunResult", "measure", "run"),
    "ops.constrained_topk": ("constrained_topk",),
    "planning": ("make_plan", "with_policy"),
    "plans": ("ClusterTopology", "LayerPlan", "Plan"),
    "prediction": ("predict_traffic",),
    "profiling": ("CollaborationProfile", "LayerProfile", "measure_collaboration"),
    "results": ("Measurement", "SweepResult", "Target"),
    "sweeps": ("SweepRequest", "sweep"),
    "tasks": (
        "TaskRequest",
        "compare_accuracy",
        "compare_evaluations",
        "evaluate",
        "load_tasks",
    ),
    "training": ("FinetuneSettings", "finetune"),
}
"""The public names of each room; the imports above say the same to type checkers."""

_HOMES = {name: f"c2r.{room}" for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'c2r' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
