"""What a model answered on tasks: kept item by item, and compared with another model's answers."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from c2r.artifacts import damaged_file
from c2r.errors import ArtifactError, InputError
from c2r.results import renamed
from c2r.tasks.compare import Comparison, compare_accuracy

_KIND = "task evaluation"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """The answers to one task; entry i of each column belongs to item i.

    Attributes:
        name: of the task, or of a group whose tasks are taken together.
        metric: decides whether an item is correct, `acc` or `exact_match`.
        num_shots: solved items in each prompt.
        version: of the task's definition, as its author counts.
        num_left_out: items without an answer: a choice is longer than the model's window.
        num_truncated: requests that lost their beginning to the model's window.
        ids: digests of item and prompt.
        correct: whether the item is right.
        loglikelihoods: of each choice, in nats; empty where the answer is generated.
    """

    name: str
    metric: str
    num_shots: int
    version: str
    num_left_out: int
    num_truncated: int
    ids: tuple[str, ...]
    correct: tuple[bool, ...]
    loglikelihoods: tuple[tuple[float, ...], ...]

    @property
    def accuracy(self) -> float:
        """Share of items that are right."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEvaluation:
    """The answers of one model under one plan.

    Attributes:
        tasks: in the order asked.
        routing: figures of the routing while the tasks ran, padding left out: `copies` and
            `copies_in_order` per token and layer, `rank_load_max_over_mean`, `num_tokens`.
        provenance: JSON data: the model, its plan, settings and versions.
    """

    tasks: tuple[TaskResult, ...]
    routing: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON data that `from_json` reads."""
        tasks = [{**asdict(task), "accuracy": task.accuracy} for task in self.tasks]
        return {"kind": _KIND, **self.provenance, "routing": self.routing, "tasks": tasks}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "TaskEvaluation":
        """The evaluation that `to_json` gave."""
        known = {"kind", "routing", "tasks", "reference", "comparison"}
        _check(document)
        return cls(
            tasks=tuple(_read_task(entry) for entry in document["tasks"]),
            routing=renamed(document["routing"]),
            provenance={key: value for key, value in document.items() if key not in known},
        )

    @classmethod
    def load(cls, path: Path) -> "TaskEvaluation":
        """Reads a JSON file of `to_json`. Raises `ArtifactError` if it is not one."""
        try:
            document = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}; check the path") from None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or document.get("kind") != _KIND:
            raise ArtifactError(f"{path} is no result of `c2r evaluate`; give a file that it wrote")
        with damaged_file(path):
            return cls.from_json(document)


def _check(document: dict[str, Any]) -> None:
    """Raises `KeyError`, `TypeError` or `ValueError` where a figure that is shown is no number."""
    routing = document["routing"]
    num_ranks = document.get("num_ranks", 1)  # not every result says
    for value in (routing["copies"], routing["rank_load_max_over_mean"], num_ranks):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError("a figure of its routing is no number")
    if not document["tasks"]:
        raise ValueError("it holds no task")


def _check_task(task: TaskResult) -> None:
    """Raises `ValueError` unless the columns are of one length and type."""
    size = len(task.ids)
    if not size or {len(task.correct), len(task.loglikelihoods)} != {size}:
        raise ValueError("the columns of a task are not of one length")
    if not all(isinstance(text, str) for text in (task.name, task.metric, *task.ids)):
        raise ValueError("a name or id of a task is no text")
    if not all(isinstance(right, bool) for right in task.correct):
        raise ValueError("an entry of correct is neither true nor false")
    if not all(type(n) is int for n in (task.num_shots, task.num_left_out, task.num_truncated)):
        raise ValueError("a count of a task is no integer")


def _read_task(entry: dict[str, Any]) -> TaskResult:
    columns = {
        "ids": tuple(entry["ids"]),
        "correct": tuple(entry["correct"]),
        "loglikelihoods": tuple(tuple(item) for item in entry["loglikelihoods"]),
    }
    known = {name: entry[name] for name in TaskResult.__dataclass_fields__}
    task = TaskResult(**{**known, **columns})
    _check_task(task)
    return task


def compare_evaluations(
    evaluation: TaskEvaluation, reference: TaskEvaluation, *, seed: int = 0
) -> dict[str, Comparison]:
    """The comparison of each task by its name, then of the mean over tasks under `all`.

    `all` is absent where there is one task only.

    Raises:
        InputError: the tasks, or their items, are not the same.
    """
    ours, theirs = ({task.name: task for task in e.tasks} for e in (evaluation, reference))
    if ours.keys() != theirs.keys():
        raise InputError(
            f"one result has the tasks {', '.join(ours)}, the other {', '.join(theirs)}; give two "
            "of the same tasks"
        )
    for name, task in ours.items():
        _check_items(task, theirs[name])
    # Both in the order of their ids: the harness may have answered them in another.
    correct, others = (
        [np.array(_by_id(tasks[name]), dtype=bool) for name in ours] for tasks in (ours, theirs)
    )
    found = {
        name: compare_accuracy([mine], [other], seed=seed)
        for name, mine, other in zip(ours, correct, others, strict=True)
    }
    if len(found) > 1:
        found["all"] = compare_accuracy(correct, others, seed=seed)
    return found


def _check_items(task: TaskResult, other: TaskResult) -> None:
    ours, theirs = Counter(task.ids), Counter(other.ids)
    num_ours, num_theirs = (ours - theirs).total(), (theirs - ours).total()
    if num_ours or num_theirs:
        raise InputError(
            f"{task.name}: {num_ours} of {len(task.ids)} items are in the first result only, "
            f"{num_theirs} of {len(other.ids)} in the second only; compare results of the same "
            "limit, num_shots, seed and files"
        )


def _by_id(task: TaskResult) -> list[bool]:
    return [right for _, right in sorted(zip(task.ids, task.correct, strict=True))]
