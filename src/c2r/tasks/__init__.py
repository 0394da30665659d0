"""Answers standard tasks under a plan, and compares the answers item by item."""

from c2r.tasks.answered import forget_answers
from c2r.tasks.compare import Comparison, compare_accuracy
from c2r.tasks.harness import evaluate
from c2r.tasks.load import PAPER_TASKS, LoadedTasks, TaskRequest, load_tasks
from c2r.tasks.results import TaskEvaluation, TaskResult, compare_evaluations

__all__ = [
    "PAPER_TASKS",
    "Comparison",
    "LoadedTasks",
    "TaskEvaluation",
    "TaskRequest",
    "TaskResult",
    "compare_accuracy",
    "compare_evaluations",
    "evaluate",
    "forget_answers",
    "load_tasks",
]
