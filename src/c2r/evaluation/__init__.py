"""What a model, constrained or not, gives when it runs: held-out loss, and the time of a layer."""

from c2r.evaluation.loss import Evaluation, evaluate, token_losses
from c2r.evaluation.parallel import ParallelEvaluation, evaluate_parallel
from c2r.evaluation.workload import RecordedRouting, Workload, record_workload

__all__ = [
    "Evaluation",
    "ParallelEvaluation",
    "RecordedRouting",
    "Workload",
    "evaluate",
    "evaluate_parallel",
    "record_workload",
    "token_losses",
]
