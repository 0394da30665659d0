"""Collaboration-constrained routing for Mixture-of-Experts models.

    profile = c2r.profile(model, batches)
    plan = c2r.make_plan(profile, num_ranks=4)
    c2r.apply(model, plan)

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2r.adapters.engines import export_plan as export_plan
    from c2r.adapters.engines import import_traces as import_traces
    from c2r.adapters.huggingface import ParallelOptions as ParallelOptions
    from c2r.adapters.huggingface import apply as apply
    from c2r.adapters.huggingface import capture as capture
    from c2r.adapters.huggingface import constraint_report as constraint_report
    from c2r.adapters.huggingface import expert_parameters as expert_parameters
    from c2r.adapters.huggingface import from_pretrained as from_pretrained
    from c2r.adapters.huggingface import gather_state_dict as gather_state_dict
    from c2r.adapters.huggingface import load_parallel as load_parallel
    from c2r.adapters.huggingface import parallelize as parallelize
    from c2r.adapters.huggingface import permute_checkpoint as permute_checkpoint
    from c2r.adapters.huggingface import profile as profile
    from c2r.adapters.huggingface import push_to_hub as push_to_hub
    from c2r.adapters.huggingface import reduce_gradients as reduce_gradients
    from c2r.adapters.huggingface import register_router as register_router
    from c2r.adapters.huggingface import remove as remove
    from c2r.adapters.huggingface import replay as replay
    from c2r.adapters.huggingface import save_parallel as save_parallel
    from c2r.adapters.huggingface import save_plan_only as save_plan_only
    from c2r.adapters.huggingface import save_pretrained as save_pretrained
    from c2r.adapters.huggingface import undo_permutation as undo_permutation
    from c2r.errors import C2RError as C2RError
    from c2r.measuring import RunResult as RunResult
    from c2r.measuring import measure as measure
    from c2r.measuring import run as run
    from c2r.ops.constrained_topk import constrained_topk as constrained_topk
    from c2r.planning import make_plan as make_plan
    from c2r.planning import with_policy as with_policy
    from c2r.plans import ClusterTopology as ClusterTopology
    from c2r.plans import LayerPlan as LayerPlan
    from c2r.plans import Plan as Plan
    from c2r.prediction import Cluster as Cluster
    from c2r.prediction import ModelSizes as ModelSizes
    from c2r.prediction import Workload as Workload
    from c2r.prediction import find_cluster as find_cluster
    from c2r.prediction import predict_time as predict_time
    from c2r.prediction import predict_traffic as predict_traffic
    from c2r.profiling import CollaborationProfile as CollaborationProfile
    from c2r.profiling import LayerProfile as LayerProfile
    from c2r.profiling import measure_collaboration as measure_collaboration
    from c2r.reporting import build_report as build_report
    from c2r.reporting import read_inputs as read_inputs
    from c2r.reporting import write_figures as write_figures
    from c2r.reporting import write_page as write_page
    from c2r.results import Measurement as Measurement
    from c2r.results import SweepResult as SweepResult
    from c2r.results import Target as Target
    from c2r.sweeps import SweepRequest as SweepRequest
    from c2r.sweeps import optimize as optimize
    from c2r.sweeps import sweep as sweep
    from c2r.tasks import TaskRequest as TaskRequest
    from c2r.tasks import compare_accuracy as compare_accuracy
    from c2r.tasks import compare_evaluations as compare_evaluations
    from c2r.tasks import evaluate as evaluate
    from c2r.tasks import load_tasks as load_tasks
    from c2r.training import FinetuneSettings as FinetuneSettings
    from c2r.training import RoutingCallback as RoutingCallback
    from c2r.training import finetune as finetune
    from c2r.training import freeze_routers as freeze_routers
    from c2r.training import routing_metrics as routing_metrics

_ROOMS = {
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
        "permute_checkpoint",
        "profile",
        "push_to_hub",
        "reduce_gradients",
        "register_router",
        "remove",
        "replay",
        "save_plan_only",
        "save_parallel",
        "save_pretrained",
        "undo_permutation",
    ),
    "errors": ("C2RError",),
    "measuring": ("RunResult", "measure", "run"),
    "ops.constrained_topk": ("constrained_topk",),
    "planning": ("make_plan", "with_policy"),
    "plans": ("ClusterTopology", "LayerPlan", "Plan"),
    "prediction": (
        "Cluster",
        "ModelSizes",
        "Workload",
        "find_cluster",
        "predict_time",
        "predict_traffic",
    ),
    "profiling": ("CollaborationProfile", "LayerProfile", "measure_collaboration"),
    "reporting": ("build_report", "read_inputs", "write_figures", "write_page"),
    "results": ("Measurement", "SweepResult", "Target"),
    "sweeps": ("SweepRequest", "optimize", "sweep"),
    "tasks": (
        "TaskRequest",
        "compare_accuracy",
        "compare_evaluations",
        "evaluate",
        "load_tasks",
    ),
    "training": (
        "FinetuneSettings",
        "RoutingCallback",
        "finetune",
        "freeze_routers",
        "routing_metrics",
    ),
}
"""The public names of each room; the imports above say the same to type checkers, to whom only
`name as name` is an export."""

_HOMES = {name: f"c2r.{room}" for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a tenth of a second

        return version("c2r-moe")
    if name not in _HOMES:
        raise AttributeError(f"module 'c2r' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
