"""Tasks of lm-evaluation-harness, answered by a model in memory with its routing policy on."""

import copy
import hashlib
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from c2r.adapters.huggingface import capture, describe_model, enforce, prepare
from c2r.adapters.huggingface.sites import evaluating
from c2r.adapters.questions import LOCAL_TASKS, Question, read_questions
from c2r.errors import InputError
from c2r.evaluation.measure import keeping_plan
from c2r.evaluation.results import TaskEvaluation, TaskResult
from c2r.evaluation.tally import RoutingTally
from c2r.planning import Plan
from c2r.traces import RoutingTrace

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

_METRICS = ("acc", "exact_match")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRequest:
    """Which tasks to answer, and how.

    Attributes:
        tasks: names; `paper` stands for those of `PAPER_TASKS`.
        task_files: YAML definitions in the format of lm-evaluation-harness.
        folder: holds the files of the tasks in `LOCAL_TASKS`, which are then read from there.
        num_shots: solved items in each prompt; None leaves it to the task.
        limit: answer the first so many items of each task, of a group's each task.
        batch_size: requests per forward pass.
        seed: draws the solved items.
    """

    tasks: tuple[str, ...] = ()
    task_files: tuple[Path, ...] = ()
    folder: Path | None = None
    num_shots: int | None = None
    limit: int | None = None
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedTasks:
    """The tasks of a request: the harness's own objects, several where a name is a group."""

    request: TaskRequest
    members: dict[str, list[Any]]


def load_tasks(request: TaskRequest) -> LoadedTasks:
    """The tasks with their items, ready for any number of models.

    Raises:
        InputError: the harness is not installed, a task is unknown or cannot be read, or it is on
            the Hugging Face hub and that cannot be reached.
    """
    _check(request)
    specifications = _specifications(request)
    shots = PAPER_TASKS if "paper" in request.tasks else {}
    members: dict[str, list[Any]] = {}
    with _quiet():
        is_local = all(isinstance(entry, dict) for entry in specifications.values())
        manager = _manager(knows_names=not is_local)
        for name, specification in specifications.items():
            members[name] = _load(manager, specification)
            for task in members[name]:
                _set_shots(task, request.num_shots, shots.get(name))
    return LoadedTasks(request=request, members=members)


def evaluate_tasks(
    model: Any, tokenizer: Any, tasks: LoadedTasks, plan: Plan, *, strict: bool = True
) -> TaskEvaluation:
    """The answers of `model` under `plan`.

    An item of a multiple-choice task is right where the right choice is the likeliest, `acc` of the
    harness. The plan that was applied to the model, and its modes, are put back.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        tasks: what `load_tasks` gave.
        plan: made for `model`; need not be applied.
        strict: also require that the router weights are those that were profiled.

    Raises:
        InputError: a task does not tell which items are right, or none fits the model's window.
        PlanMismatchError: the plan was made for another model.
        ModelError, RoutingError: as `c2r.capture`.
    """
    prepared, request = prepare(model, plan, strict), tasks.request
    flat = [task for members in tasks.members.values() for task in members]
    for task in flat:
        task.set_fewshot_seed(seed=request.seed)
    with _quiet(), keeping_plan(model), evaluating(model), _counting(model, plan) as tallies:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        enforce(model, prepared)
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # the harness gives it a padding token
            batch_size=request.batch_size,
            prefix_token_id=_prefix(tokenizer),
        )
        found = evaluate(
            lm,
            {"tasks": {task.task_name: task for task in flat}},
            samples={task.task_name: _fitting(task, lm, request.limit) for task in flat},
            bootstrap_iters=0,
        )
    answers = found["samples"]
    results = [_result(*entry, answers, lm, request.limit) for entry in tasks.members.items()]
    return TaskEvaluation(
        tasks=tuple(results),
        routing=_routing(tallies),
        provenance=_provenance(model, plan, request),
    )


def _prefix(tokenizer: Any) -> int | None:
    """What the harness puts before a text that begins with nothing, where no token is meant to."""
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None:
        return None
    return int(tokenizer.encode("\n")[-1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the harness's warnings to itself: they are about how it was called."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


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
            found[name] = _definition(name, read_questions(name, request.folder))
        else:
            found[name] = name
    for path in request.task_files:
        if path.stem in found:
            raise InputError(f"two tasks are named {path.stem}; rename the file {path}")
        if not path.is_file():
            raise InputError(f"there is no task file {path}; check the path")
        found[path.stem] = str(path)
    if not found:
        raise InputError("no task is named; give --tasks or --task-file")
    return found


@cache
def _manager(knows_names: bool) -> Any:
    """The harness's loader of tasks; one that knows their names takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=knows_names)


def _load(manager: Any, specification: Any) -> list[Any]:
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        return list(manager.load([specification])["tasks"].values())
    except KeyError:
        close = get_close_matches(specification, {*manager.all_tasks, *LOCAL_TASKS})
        near = f"; near are {', '.join(close)}" if close else ""
        raise InputError(
            f"there is no task {specification}{near}; `lm-eval ls tasks` lists the names, and "
            f"--tasks-dir gives {', '.join(LOCAL_TASKS)}"
        ) from None
    except ConnectionError as error:
        raise InputError(
            f"task {specification} needs the Hugging Face hub, which cannot be reached ({error}); "
            "go online once, or use --tasks-dir or --task-file"
        ) from error
    except (OSError, ValueError, TypeError, YAMLError, TemplateError, DatasetsError) as error:
        raise InputError(
            f"task {specification} cannot be loaded ({error}); correct its definition or its files"
        ) from error


def _definition(name: str, questions: Sequence[Question]) -> dict[str, Any]:
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


@contextmanager
def _counting(model: nn.Module, plan: Plan) -> Iterator[list[RoutingTally]]:
    """Counts the routing of every forward pass into one tally."""
    tallies: list[RoutingTally] = []

    def count(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], __: Any) -> None:
        trace = recorder.take()
        if kwargs.get("attention_mask") is None:
            trace = _without_padding(trace, args[0] if args else kwargs["input_ids"])
        tally = RoutingTally.count(trace, plan)
        if tallies:
            tallies[0].add(tally)
        else:
            tallies.append(tally)

    with capture(model) as recorder:
        handle = model.register_forward_hook(count, with_kwargs=True)
        try:
            yield tallies
        finally:
            handle.remove()


def _without_padding(trace: RoutingTrace, input_ids: Tensor) -> RoutingTrace:
    """The trace without the zeros with which the harness fills up its rows."""
    is_token = (input_ids != 0).flip(1).cumsum(1).flip(1) > 0
    kept = is_token.flatten()
    layers = (
        replace(layer, expert_ids=layer.expert_ids[kept], scores=layer.scores[kept], weights=None)
        for layer in trace.layers
    )
    return RoutingTrace(layers=tuple(layers))


def _fitting(task: Any, lm: Any, limit: int | None) -> list[int]:
    """The first items, without those that have a choice longer than the model's window."""

    def fits(doc: dict[str, Any]) -> bool:
        texts = [f"{task.config.target_delimiter}{choice}" for choice in task.doc_to_choice(doc)]
        lengths = (len(lm.tok_encode(text, add_special_tokens=False)) for text in texts)
        return all(length <= lm.max_length for length in lengths)

    items = list(itertools.islice(enumerate(task.eval_docs), limit))
    if task.OUTPUT_TYPE != "multiple_choice":
        return [index for index, _ in items]
    fitting = [index for index, doc in items if fits(doc)]
    if not fitting:
        raise InputError(
            f"no choice of task {task.task_name} fits the model's window of {lm.max_length} "
            "tokens; choose another task or model"
        )
    return fitting


def _routing(tallies: Sequence[RoutingTally]) -> dict[str, float]:
    (tally,) = tallies
    return {**tally.means(), "num_tokens": float(tally.num_tokens[0])}


def _result(
    name: str, members: Sequence[Any], answers: dict[str, Any], lm: Any, limit: int | None
) -> TaskResult:
    rows = [_first_filter(answers[task.task_name]) for task in members]
    num_asked = sum(len(range(len(task.eval_docs))[:limit]) for task in members)
    metric = next((m for m in _METRICS if all(m in row for part in rows for row in part)), None)
    if metric is None:
        raise InputError(
            f"task {name} does not tell which items are right; choose one that measures "
            f"{' or '.join(_METRICS)}"
        )
    items = [row for part in rows for row in part]
    return TaskResult(
        name=name,
        metric=metric,
        num_shots=members[0].get_config("num_fewshot"),
        version=str(members[0].VERSION),
        num_left_out=num_asked - len(items),
        num_truncated=sum(_num_truncated(row, lm) for row in items),
        ids=tuple(_item_id(row) for row in items),
        correct=tuple(bool(row[metric]) for row in items),
        loglikelihoods=tuple(_loglikelihoods(row) for row in items),
    )


def _first_filter(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["filter"] == rows[0]["filter"]]


def _item_id(row: dict[str, Any]) -> str:
    parts = row["doc_hash"] + row["prompt_hash"] + row["target_hash"]
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _loglikelihoods(row: dict[str, Any]) -> tuple[float, ...]:
    answers = row["filtered_resps"]
    return tuple(float(answer[0]) for answer in answers if isinstance(answer, tuple | list))


def _num_truncated(row: dict[str, Any], lm: Any) -> int:
    texts = ["".join(pair) for pair in row["arguments"] if isinstance(pair[-1], str)]
    return sum(len(lm.tok_encode(text)) > lm.max_length + 1 for text in texts)


def _provenance(model: Any, plan: Plan, request: TaskRequest) -> dict[str, Any]:
    packages = {"c2r": "c2r-moe", "lm_eval": "lm_eval", "transformers": "transformers"}
    settings = {key: _plain(value) for key, value in asdict(request).items()}
    return {
        **describe_model(model),
        "dtype": str(model.dtype),
        "plan_fingerprint": plan.fingerprint,
        "policies": sorted({layer.policy for layer in plan.layers}),
        "num_ranks": plan.topology.num_ranks,
        "settings": settings,
        "versions": {
            **{name: version(package) for name, package in packages.items()},
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
