"""`c2r evaluate`: which items of tasks a model has right, and whether a plan changed that."""

import json as json_format
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import PlanOption, load_model_and_tokenizer, plan_of
from c2r.cli.processes import is_first_process
from c2r.cli.ranks import DEFAULT_TIMEOUT, Ranks, TimeoutOption, together
from c2r.cli.runs import check_output, is_forced
from c2r.errors import InputError, without_controls

if TYPE_CHECKING:
    from c2r.tasks import Comparison, LoadedTasks, TaskEvaluation


@runs_model()
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="Hugging Face folder or hub name; `tiny` is the embedded model."),
    ] = None,
    plan: PlanOption = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="Names of lm-evaluation-harness, as arc_easy,sciq (from the hub). paper: the ten "
            "of the C2R paper: arc_easy, logiqa, openbookqa, piqa, sciq, winogrande (0 shots), "
            "arc_challenge (25), boolq (32), hellaswag (10), mmlu (5)."
        ),
    ] = "",
    tasks_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of published files; piqa, logiqa, gsm8k-choice are read there."),
    ] = None,
    task_file: Annotated[
        list[Path] | None,
        typer.Option(help="YAML of a task in lm-evaluation-harness's format; repeat for several."),
    ] = None,
    trust_task_code: Annotated[
        bool,
        typer.Option(
            "--trust-task-code",
            help="Let task files run any code: their !function, metrics and templates.",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Only this many items of each task, the first ones.")
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Solved items in each prompt.", show_default="the task's own"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Requests per forward pass.")] = 8,
    seed: Annotated[int, typer.Option(help="Draws the shots, and the resamples.")] = 0,
    against: Annotated[
        str | None,
        typer.Option(
            help="Another model to compare with.", show_default="the same with plain top-k"
        ),
    ] = None,
    against_plan: Annotated[
        Path | None, typer.Option(help="Plan of the model that is compared with.")
    ] = None,
    no_compare: Annotated[bool, typer.Option("--no-compare", help="Compare with nothing.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Only compare two results that --out wrote; runs nothing."),
    ] = None,
    loading: ModelOptions = DEFAULT_LOADING,
    other_weights: Annotated[
        bool,
        typer.Option(
            "--other-weights",
            help="Accept a plan that was profiled on other weights of the same model.",
        ),
    ] = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    out: Annotated[Path | None, typer.Option(help="JSON to write, with every item.")] = None,
    json: JsonOption = False,
) -> None:
    """Answer standard tasks under a plan, compared item by item.

    The comparison is with plain top-k, unless another is named. Differences come with 95 %
    intervals (paired bootstrap) and McNemar's exact p. Needs `pip install 'c2r-moe[eval]'`, except
    for --compare. Under torchrun ranks share the items. An interrupted evaluation resumes with the
    same command and --out.
    """
    from c2r.tasks import TaskEvaluation, TaskRequest, forget_answers, load_tasks

    named = (model, plan, against, against_plan, tasks_dir)
    check_output(out, *named, *(task_file or ()), *(compare or ()))
    if compare is not None:
        found = [TaskEvaluation.load(path) for path in compare]
        _finish(found, {"results": [str(path) for path in compare]}, seed, out, json)
    elif model is None:
        raise InputError("name a model, or two results with --compare")
    else:
        request = TaskRequest(
            tasks=tuple(name for name in tasks.replace(" ", "").split(",") if name),
            task_files=tuple(task_file or ()),
            folder=tasks_dir,
            num_shots=shots,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            trust_task_code=trust_task_code,
        )
        other = against is not None or against_plan is not None
        sides = [
            _Side(
                model=model,
                plan=plan,
                loading=loading,
                strict=not other_weights,
                with_plain=not (other or no_compare),
            )
        ]
        if other and not no_compare:
            sides.append(replace(sides[0], model=against or model, plan=against_plan))
        if out is not None and is_forced() and is_first_process():
            forget_answers(out)
        with together(timeout, "gloo") as ranks:
            loaded = load_tasks(request)
            ranks.agree({"the tasks": repr(request), "the models": repr(sides)})
            found = [one for side in sides for one in side.answer(loaded, ranks, out)]
            if is_first_process():
                _finish(found, _document(found), seed, out, json)
            if out is not None:
                ranks.meet("the writing of the result")
                forget_answers(out)


def _document(found: "list[TaskEvaluation]") -> dict[str, Any]:
    document, *others = [one.to_json() for one in found]
    return {**document, "reference": others[0]} if others else document


def _finish(
    found: "list[TaskEvaluation]", document: dict[str, Any], seed: int, out: Path | None, json: bool
) -> None:
    """Compares the two results, if there are two, writes and shows."""
    from c2r.tasks import compare_evaluations

    comparison = {}
    if len(found) > 1:
        comparison = compare_evaluations(*found, seed=seed)
        document["comparison"] = {
            name: {**asdict(entry), "is_shown": entry.is_shown}
            for name, entry in comparison.items()
        }
    _write(document, out)
    if json:
        print_json(document)
    else:
        _show(found, comparison)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """A model and its plan; `with_plain`, then plain top-k on the same placement too."""

    model: str
    plan: Path | None
    loading: ModelOptions
    strict: bool
    with_plain: bool

    def answer(
        self, tasks: "LoadedTasks", ranks: Ranks, out: Path | None
    ) -> "list[TaskEvaluation]":
        from c2r.adapters.huggingface import describe_model
        from c2r.measuring import unconstrained
        from c2r.tasks import evaluate as evaluate_tasks

        model, tokenizer = load_model_and_tokenizer(self.model, self.loading)
        plan = plan_of(model, self.plan)
        plain = unconstrained(plan)
        plans = [plan]
        if self.with_plain and plain.fingerprint != plan.fingerprint:
            plans.append(plain)
        ranks.agree({"the plan": plan.fingerprint, "the model": describe_model(model)})
        return [
            evaluate_tasks(model, tokenizer, tasks, p, strict=self.strict, comm=ranks.comm, out=out)
            for p in plans
        ]


def _write(document: dict[str, Any], out: Path | None) -> None:
    from c2r.artifacts import write_text

    if out is not None:
        write_text(out, json_format.dumps(document))
        note(f"wrote {out}")


def _show(found: "list[TaskEvaluation]", comparison: "dict[str, Comparison]") -> None:
    for task in found[0].tasks:
        if task.num_left_out or task.num_truncated:
            note(
                f"{task.name}: {task.num_left_out} items, with choices beyond the model's window, "
                f"are left out; {task.num_truncated} requests lost their beginning to it"
            )
    if comparison:
        columns = ["task", "items", "right", "reference", "difference (95 %)", "McNemar p"]
        columns += ["least shown", "verdict"]
        print_table("Tasks", columns, [_compared(*entry) for entry in comparison.items()])
    else:
        rows = [[task.name, len(task.correct), _percent(task.accuracy)] for task in found[0].tasks]
        print_table("Tasks", ["task", "items", "right"], rows)
    shots = ", ".join(f"{task.name} {task.num_shots}" for task in found[0].tasks)
    print(without_controls(f"shots: {shots}"))
    for name, evaluation in zip(("", ", reference"), found, strict=False):
        routing = evaluation.routing
        print(
            f"copies per token{name}: {routing['copies']:.3f} on "
            f"{evaluation.provenance.get('num_ranks', 'unknown')} ranks, rank load "
            f"{routing['rank_load_max_over_mean']:.2f}"
        )
    if comparison:
        print(
            "A difference is shown where the interval is clear of 0 and p is at most 0.05; one "
            "below `least\nshown` could not have been with these items."
        )


def _compared(name: str, comparison: "Comparison") -> list[object]:
    low, high = (f"{100 * end:+.1f}" for end in comparison.interval)
    verdict = "better" if comparison.difference > 0 else "worse"
    return [
        "mean of tasks" if name == "all" else name,
        comparison.num_items,
        _percent(comparison.accuracy),
        _percent(comparison.reference_accuracy),
        f"{100 * comparison.difference:+.1f} ({low} to {high})",
        f"{comparison.p_value:.3f}",
        f"{100 * comparison.detectable:.1f}" if comparison.detectable <= 1 else "none",
        verdict if comparison.is_shown else "no difference shown",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
