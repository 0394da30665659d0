"""How well a model predicts text, with and without its constraint, and what it sends meanwhile."""

from c2r.evaluation.compare import Comparison, compare_accuracy
from c2r.evaluation.grid import DEFAULT_POLICIES, default_points
from c2r.evaluation.harness import evaluate_tasks
from c2r.evaluation.loss import Evaluation, evaluate, token_losses
from c2r.evaluation.measure import free_plan, measure_plan, measure_plans, unconstrained
from c2r.evaluation.parallel import ParallelEvaluation, evaluate_parallel
from c2r.evaluation.results import TaskEvaluation, TaskResult, compare_evaluations
from c2r.evaluation.sensitivity import measure_sensitivity, spread_points
from c2r.evaluation.study import Study, SweepRequest
from c2r.evaluation.sweep import Sweep, SweepPoint
from c2r.evaluation.tally import Figures, RoutingTally, Tally
from c2r.evaluation.target import Target, plan_from_sweep, read_partial, read_sweep, write_sweep
from c2r.evaluation.tasks import PAPER_TASKS, LoadedTasks, TaskRequest, load_tasks
from c2r.evaluation.workload import RecordedRouting, Workload, record_workload

__all__ = [
    "DEFAULT_POLICIES",
    "PAPER_TASKS",
    "Comparison",
    "Evaluation",
    "Figures",
    "LoadedTasks",
    "ParallelEvaluation",
    "RecordedRouting",
    "RoutingTally",
    "Study",
    "Sweep",
    "SweepPoint",
    "SweepRequest",
    "Tally",
    "Target",
    "TaskEvaluation",
    "TaskRequest",
    "TaskResult",
    "Workload",
    "compare_accuracy",
    "compare_evaluations",
    "default_points",
    "evaluate",
    "evaluate_parallel",
    "evaluate_tasks",
    "free_plan",
    "load_tasks",
    "measure_plan",
    "measure_plans",
    "measure_sensitivity",
    "plan_from_sweep",
    "read_partial",
    "read_sweep",
    "record_workload",
    "spread_points",
    "token_losses",
    "unconstrained",
    "write_sweep",
]
