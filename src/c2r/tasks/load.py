"""Tasks of lm-evaluation-harness: by name, from a user's files, and our own."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from c2r.errors import InputError
from c2r.tasks.questions import LOCAL_TASKS, Question, read_questions
from c2r.tasks.trust import check_task_file, sandboxed_templates

PAPER_TASKS = {
    "arc_easy": 0,
    "arc_challenge": 25,
    "boolq": 32,
    "hellaswag": 10,
    "logiqa": 0,
    "openbookqa": 0,
    "piqa": 0,
    "sciq": 0,
    "winogrande": 0,
    "mmlu": 5,
}
"""The ten tasks of `paper` and their shots: our choice, as is usual for each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRequest:
    """Which tasks to answer, and how.

    Attributes:
        tasks: names; `paper` stands for `PAPER_TASKS`.
        task_files: YAML definitions in the format of lm-evaluation-harness.
        folder: holds the files of the tasks in `LOCAL_TASKS`, which are then read from there.
        num_shots: solved items in each prompt; None leaves it to the task.
        limit: answer this many items of each task, the first ones; in a group, of each of its
            tasks.
        batch_size: requests per forward pass.
        seed: draws the solved items.
        trust_task_code: let task files run code: functions, unknown metrics, free templates.
    """

    tasks: tuple[str, ...] = ()
    task_files: tuple[Path, ...] = ()
    folder: Path | None = None
    num_shots: int | None = None
    limit: int | None = None
    batch_size: int = 8
    seed: int = 0
    trust_task_code: bool = False

    @property
    def is_trusted(self) -> bool:
        """Whether templates may do anything: the harness's own may, a file's only if asked."""
        return self.trust_task_code or not self.task_files


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedTasks:
    """The tasks of a request: the harness's own objects, several where a name is a group."""

    request: TaskRequest
    members: dict[str, list[Any]]


def load_tasks(request: TaskRequest) -> LoadedTasks:
    """The tasks with their items, ready for any number of models.

    Raises:
        InputError: the harness is not installed, a task is unknown or cannot be read, its file
            asks for code to be run, or it is on the Hugging Face hub and that cannot be reached.
    """
    _check(request)
    specifications = _specifications(request)
    for path in () if request.trust_task_code else request.task_files:
        check_task_file(path)
    shots = PAPER_TASKS if "paper" in request.tasks else {}
    members: dict[str, list[Any]] = {}
    with quiet(), sandboxed_templates(request.is_trusted):
        # Only definitions of ours: then the harness need not look for its own, which takes seconds.
        is_local = all(isinstance(entry, dict) for entry in specifications.values())
        manager = _manager(knows_names=not is_local)
        for name, specification in specifications.items():
            members[name] = _load(manager, specification)
            for task in members[name]:
                _set_shots(task, request.num_shots, shots.get(name))
    return LoadedTasks(request=request, members=members)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of the harness, how it was called, and of each data set in the cache."""
    import datasets  # noqa: F401 - sets its level when it is first imported

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _check(request: TaskRequest) -> None:
    if find_spec("lm_eval") is None:
        raise InputError(
            "tasks need lm-evaluation-harness, which is not installed; "
            "`pip install 'c2r-moe[eval]'`"
        )
    least = {"batch_size": 1, "limit": 1, "num_shots": 0}
    for name, bound in least.items():
        value = getattr(request, name)
        if value is not None and value < bound:
            raise InputError(f"{name} is {value}; it must be at least {bound}")


def _specifications(request: TaskRequest) -> dict[str, Any]:
    """What the harness loads each task by: its name, its file, or a definition of ours."""
    names = [n for name in request.tasks for n in (PAPER_TASKS if name == "paper" else [name])]
    found: dict[str, Any] = {}
    for name in names:
        if request.folder is not None and name in LOCAL_TASKS:
            questions = read_questions(name, request.folder)
            # The item asked is no shot of its own prompt, so one more than the shots is needed.
            if len(questions) <= (request.num_shots or 0):
                raise InputError(
                    f"{name} has {len(questions)} items, too few for {request.num_shots} shots "
                    "beside each; ask for fewer"
                )
            found[name] = _definition(name, questions)
        else:
            found[name] = name
    for path in request.task_files:
        if path.stem in found:
            raise InputError(f"two tasks are named {path.stem}; rename the file {path}")
        if not path.is_file():
            raise InputError(f"there is no task file {path}; check the path")
        found[path.stem] = str(path)
    if not found:
        raise InputError("no task is named; give tasks or task_files")
    return found


@cache
def _manager(knows_names: bool) -> Any:
    """The harness's loader of tasks; one that knows their names takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=knows_names)


def _load(manager: Any, specification: Any) -> list[Any]:
    """The tasks behind one specification, several where it is a group; failures in one line."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        return list(manager.load([specification])["tasks"].values())
    except KeyError:
        close = get_close_matches(specification, {*manager.all_tasks, *LOCAL_TASKS})
        near = f"; near are {', '.join(close)}" if close else ""
        raise InputError(
            f"there is no task {specification}{near}; `lm-eval ls tasks` lists the names, and a "
            f"folder of their files gives {', '.join(LOCAL_TASKS)}"
        ) from None
    except ConnectionError as error:
        raise InputError(
            f"task {specification} needs the Hugging Face hub, which cannot be reached ({error}); "
            "go online once, or give a folder of task files, or task_files"
        ) from error
    except (OSError, ValueError, TypeError, YAMLError, TemplateError, DatasetsError) as error:
        raise InputError(
            f"task {specification} cannot be loaded ({error}); correct its definition or its files"
        ) from error


def _definition(name: str, questions: Sequence[Question]) -> dict[str, Any]:
    """A task in the harness's own words; shots are drawn from the items, never the one asked."""

    def items(**_: Any) -> Any:
        from datasets import Dataset

        return {"test": Dataset.from_list([asdict(question) for question in questions])}

    return {
        "task": name,
        "custom_dataset": items,
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metadata": {"version": 1},
    }


def _set_shots(task: Any, asked: int | None, preset: int | None) -> None:
    for number in (asked, preset, task.get_config("num_fewshot"), 0):
        if number is not None:
            task.set_config("num_fewshot", number)
            return
