"""Tasks of lm-evaluation-harness, answered by a model in memory with its routing policy on."""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from c2r.adapters.huggingface import (
    capture,
    check_ids,
    describe_model,
    eager,
    enforce,
    evaluating,
    prepare,
)
from c2r.errors import InputError
from c2r.measuring import RoutingTally, keeping_plan
from c2r.parallel import Comm
from c2r.plans import Plan
from c2r.tasks.answered import Answered, Row
from c2r.tasks.load import LoadedTasks, TaskRequest, quiet
from c2r.tasks.results import TaskEvaluation, TaskResult
from c2r.tasks.trust import sandboxed_templates

Item = tuple[Any, int]
"""A task of the harness, and the number of the item in it."""
_METRICS = ("acc", "exact_match")  # those that are right or wrong for each item, in this order
_BATCHES_AT_ONCE = 32  # that the harness may sort by length; answers are kept only between them


def evaluate(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    model: Any,
    tokenizer: Any,
    tasks: LoadedTasks,
    plan: Plan,
    *,
    strict: bool = True,
    comm: Comm | None = None,
    out: Path | None = None,
) -> TaskEvaluation:
    """The answers of `model` under `plan`.

    An item of a multiple-choice task counts as correct if the correct choice has the highest
    likelihood (`acc` of the harness). The model's own plan and its modes are restored afterwards.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        tasks: what `load_tasks` gave.
        plan: made for `model`; need not be applied.
        strict: also require that the router weights are those that were profiled.
        comm: ranks that share the items of each task, each with the whole model; all get the
            result. None for one process. (The harness's own protocol would exchange pickles.)
        out: where the result will be written: what each rank has answered is kept beside it, and
            an interrupted or lost run of the same resumes from there. `forget_answers` removes it.

    Raises:
        InputError: a task does not tell which items are right, or none fits the model's window.
        PlanMismatchError: the plan was made for another model.
        ModelError, RoutingError: as `c2r.capture`.
    """
    prepared, request = prepare(model, plan, strict), tasks.request
    flat = [task for members in tasks.members.values() for task in members]
    provenance = _provenance(model, plan, request)
    with (
        quiet(),
        sandboxed_templates(request.is_trusted),
        keeping_plan(model),
        evaluating(model),
        eager(),
        _counting(model, plan) as tallies,
    ):
        from lm_eval.models.huggingface import HFLM

        enforce(model, prepared)
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # the harness gives it a padding token
            batch_size=request.batch_size,
            prefix_token_id=_prefix(tokenizer),
        )
        items = [(task, index) for task in flat for index in _fitting(task, lm, request.limit)]
        asked = {**provenance, "items": _digest(items)}
        answered = Answered(out, asked, len(items), comm)
        try:
            for numbers in answered.left(_BATCHES_AT_ONCE * request.batch_size):
                rows = _answer([items[number] for number in numbers], lm, request.seed)
                answered.add(numbers, rows, tallies.pop())
        except KeyboardInterrupt:
            answered.save()
            raise
    rows, tally = answered.gather()
    of_tasks: dict[str, list[Row]] = {}
    for (task, _), row in zip(items, rows, strict=True):
        of_tasks.setdefault(task.task_name, []).append(row)
    results = [_result(*entry, of_tasks, request.limit) for entry in tasks.members.items()]
    return TaskEvaluation(
        tasks=tuple(results),
        routing={**tally.means(), "num_tokens": float(tally.num_tokens[0])},
        provenance=provenance,
    )


def _answer(items: Sequence[Item], lm: Any, seed: int) -> list[Row]:
    """The rows of some items, which are in the order of their tasks."""
    from lm_eval import evaluator

    asked = {task.task_name: task for task, _ in items}
    numbers: dict[str, list[int]] = {name: [] for name in asked}
    for task, index in items:
        numbers[task.task_name].append(index)
    with _drawing_for_each(asked, numbers, seed):
        found = evaluator.evaluate(
            lm,
            {"tasks": asked},
            samples=numbers,
            bootstrap_iters=0,  # intervals are made from pairs, in `compare_accuracy`
        )["samples"]
    return [_row(row, lm) for name in asked for row in _first_filter(found[name])]


@contextmanager
def _drawing_for_each(
    tasks: Mapping[str, Any], numbers: Mapping[str, Sequence[int]], seed: int
) -> Iterator[None]:
    """Draws the shots of each item by its number, not by which items were asked before it."""

    def context(task: Any, left: Iterator[int], *args: Any, **options: Any) -> Any:
        task.set_fewshot_seed(seed=(seed << 32) + next(left))
        return type(task).fewshot_context(task, *args, **options)

    try:
        for name, task in tasks.items():
            task.fewshot_context = partial(context, task, iter(numbers[name]))
        yield
    finally:
        for task in tasks.values():
            vars(task).pop("fewshot_context", None)


def _digest(items: Sequence[Item]) -> str:
    """Identifies the content of items."""
    digest = hashlib.sha256()
    for task, members in itertools.groupby(items, lambda item: item[0]):
        docs = task.eval_docs  # made anew each time
        for _, index in members:
            entry = [task.task_name, index, docs[index]]
            digest.update(json.dumps(entry, default=str).encode())
    return digest.hexdigest()[:16]


def _prefix(tokenizer: Any) -> int | None:
    """What the harness puts before a text that begins with nothing, where no token is meant to."""
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None:
        return None
    return int(tokenizer.encode("\n")[-1])  # a new line is the least that can go before


@contextmanager
def _counting(model: nn.Module, plan: Plan) -> Iterator[list[RoutingTally]]:
    """Counts the routing of every forward pass into one tally."""
    tallies: list[RoutingTally] = []

    def count(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], __: Any) -> None:
        trace = recorder.take()
        # With a mask the recorder has left padding out; the harness gives none and pads with zeros.
        if kwargs.get("attention_mask") is None:
            trace = trace.of_tokens(_is_token(args[0] if args else kwargs["input_ids"]))
        tally = RoutingTally.count(trace, plan)
        if tallies:
            tallies[0].add(tally)
        else:
            tallies.append(tally)

    def check(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        check_ids(model, args[0] if args else kwargs["input_ids"])

    with capture(model) as recorder, ExitStack() as hooks:
        for handle in (
            model.register_forward_pre_hook(check, with_kwargs=True),
            model.register_forward_hook(count, with_kwargs=True),
        ):
            hooks.callback(handle.remove)
        yield tallies


def _is_token(input_ids: Tensor) -> Tensor:
    """`[batch * tokens]` bool: false for the zeros with which the harness pads its rows."""
    # From the end, positions are tokens once any id but 0 has come: zeros inside a text stay.
    return (input_ids != 0).flip(1).cumsum(1).flip(1).flatten() > 0


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


def _result(
    name: str, members: Sequence[Any], rows: Mapping[str, list[Row]], limit: int | None
) -> TaskResult:
    """The items of a task, or of all tasks of a group one after the other."""
    items = [row for task in members for row in rows[task.task_name]]
    num_asked = sum(len(range(len(task.eval_docs))[:limit]) for task in members)
    metric = next((m for m in _METRICS if all(m in row["right"] for row in items)), None)
    if metric is None:
        raise InputError(
            f"task {name} does not tell which items are right; choose one that measures "
            f"{' or '.join(_METRICS)}"
        )
    return TaskResult(
        name=name,
        metric=metric,
        num_shots=members[0].get_config("num_fewshot"),
        version=str(members[0].VERSION),
        num_left_out=num_asked - len(items),
        num_truncated=sum(row["num_truncated"] for row in items),
        ids=tuple(row["id"] for row in items),
        correct=tuple(row["right"][metric] for row in items),
        loglikelihoods=tuple(tuple(row["loglikelihoods"]) for row in items),
    )


def _row(row: dict[str, Any], lm: Any) -> Row:
    """What is kept of an item's row, as JSON data."""
    return {
        "id": _item_id(row),
        "right": {metric: bool(row[metric]) for metric in _METRICS if metric in row},
        "loglikelihoods": _loglikelihoods(row),
        "num_truncated": _num_truncated(row, lm),
    }


def _first_filter(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of rows that come once for each filter of a task's answers, those of its first."""
    return [row for row in rows if row["filter"] == rows[0]["filter"]]


def _item_id(row: dict[str, Any]) -> str:
    parts = row["doc_hash"] + row["prompt_hash"] + row["target_hash"]
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _loglikelihoods(row: dict[str, Any]) -> tuple[float, ...]:
    answers = row["filtered_resps"]
    return tuple(float(answer[0]) for answer in answers if isinstance(answer, tuple | list))


def _num_truncated(row: dict[str, Any], lm: Any) -> int:
    texts = ["".join(pair) for pair in row["arguments"] if isinstance(pair[-1], str)]
    # One more than fits: the last token is predicted, not read.
    return sum(len(lm.tok_encode(text)) > lm.max_length + 1 for text in texts)


def _provenance(model: Any, plan: Plan, request: TaskRequest) -> dict[str, Any]:
    """What an evaluation has to be repeated with, as JSON data."""
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
