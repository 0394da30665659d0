"""What a report shows of the JSON that `c2r evaluate` wrote, read without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TASK_KIND = "task evaluation"
"""What such a file says of itself."""
ALL = "all"
"""Name of the mean of several tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLine:
    """The answers to one task, or their mean over tasks.

    Attributes:
        name: of the task; `all` is the mean of the others.
        num_items: that were answered.
        accuracy: share of them that is right.
        reference_accuracy: the same of what it is compared with; None where with nothing.
        interval: 95 % interval of the difference of the two, paired; (0, 0) without a reference.
        is_shown: whether the items show a difference.
    """

    name: str
    num_items: int
    accuracy: float
    reference_accuracy: float | None = None
    interval: tuple[float, float] = (0.0, 0.0)
    is_shown: bool = False

    @property
    def difference(self) -> float:
        """Accuracy over the reference's; 0 without one."""
        return 0.0 if self.reference_accuracy is None else self.accuracy - self.reference_accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskReport:
    """The answers of one model under one plan.

    Attributes:
        lines: of each task, then of their mean where there are several and a reference.
        provenance: JSON data: the model, its plan, settings and versions.
    """

    lines: tuple[TaskLine, ...]
    provenance: Mapping[str, Any]

    @property
    def is_compared(self) -> bool:
        """Whether there is a reference."""
        return self.lines[-1].reference_accuracy is not None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TaskReport":
        """What `c2r evaluate --out` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: an entry is missing, or not what it
                must be.
        """
        compared = document.get("comparison") or {}
        if compared:
            lines = tuple(_compared(str(name), entry) for name, entry in compared.items())
        else:
            lines = tuple(_alone(entry) for entry in document["tasks"])
        if not lines:
            raise ValueError("it holds no task")
        known = ("kind", "routing", "tasks", "reference", "comparison")
        return cls(
            lines=lines,
            provenance={key: value for key, value in document.items() if key not in known},
        )


def _alone(entry: Mapping[str, Any]) -> TaskLine:
    return TaskLine(
        name=str(entry["name"]), num_items=len(entry["correct"]), accuracy=_share(entry["accuracy"])
    )


def _compared(name: str, entry: Mapping[str, Any]) -> TaskLine:
    low, high = map(_number, entry["interval"])
    return TaskLine(
        name=name,
        num_items=int(_number(entry["num_items"])),
        accuracy=_share(entry["accuracy"]),
        reference_accuracy=_share(entry["reference_accuracy"]),
        interval=(low, high),
        is_shown=entry["is_shown"] is True,
    )


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError(f"an accuracy is {value}")
    return float(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)
