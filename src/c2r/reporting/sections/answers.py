"""The questions that a report answers first, in numbers of the files given."""

from collections.abc import Sequence
from dataclasses import replace

from c2r.prediction import TrafficReport
from c2r.profiling import CollaborationMetrics, mean_metrics
from c2r.reporting.charts import MINUS, Answer, State
from c2r.reporting.inputs import Inputs
from c2r.reporting.sections.quality import ALLOWED_INCREASE, ChosenPoint, choose_point, name_of
from c2r.reporting.task_report import ALL, TaskReport
from c2r.reporting.times import Setting, Times, mean_load

_COLLABORATION = "How collaborative is this model?"
_TRAFFIC = "What does its traffic cost today?"
_SAVING = "How much is sent?"
_QUALITY = "What does it cost in quality?"
_LOAD = "How even is the work?"

_NOT_MEASURED = "not measured"
"""Of a quality that no file tells."""
_UNKNOWN = "not known"
_SLACK = 0.05  # of load: less is no news


def answer_collaboration(inputs: Inputs, metrics: Sequence[CollaborationMetrics] | None) -> Answer:
    """From the profile: with how many others an expert shares its tokens."""
    if inputs.profile is None or metrics is None:
        return Answer(
            question=_COLLABORATION,
            number=_UNKNOWN,
            unit="",
            text="Add the profile of the model, from `c2r profile`.",
        )
    mean = mean_metrics(metrics)
    each = [layer.effective_collaborators for layer in metrics]
    others = inputs.profile.num_experts - 1
    return Answer(
        question=_COLLABORATION,
        number=f"{mean.effective_collaborators:.1f} of {others}",
        unit="other experts share an expert's tokens, in effect",
        text=f"1 would be one fixed partner, {others} everyone alike: the fewer, the more can be "
        f"placed together. By layer it goes from {min(each):.1f} to {max(each):.1f}. The closest "
        f"partner takes {100 * mean.top_partner_share:.0f} % of what an expert shares; the busiest "
        f"expert gets {mean.load_max_over_mean:.1f} times the mean load.",
    )


def answer_traffic(inputs: Inputs, traffic: TrafficReport | None) -> Answer:
    """Copies per token of plain routing with the experts in order; held-out ones if measured."""
    top_k = _top_k(inputs)
    each = "" if top_k is None else f" Sent once per expert, it would be {top_k}."
    if inputs.sweep is not None:
        number = f"{inputs.sweep.baseline.copies_in_order:.2f}"
        text = f"{_visits(inputs)}; measured on held-out text.{each}"
    elif traffic is not None:
        mean = traffic.mean
        number = f"{mean.copies_in_order:.2f}"
        text = (
            f"{_visits(inputs)}.{each} {mean.remote_copies_in_order:.2f} of the "
            f"{mean.copies_in_order:.2f} leave the token's own rank. The busiest rank does "
            f"{mean.rank_load_max_over_mean_in_order:.2f} times the mean work."
        )
    elif top_k is not None:
        number = str(top_k)
        text = "One for each expert of a token. Add a plan to see copies per rank: `c2r plan`."
    else:
        number, text = _UNKNOWN, "Add a profile and a plan, or a sweep."
    unit = "" if number == _UNKNOWN else "copies of each token, in each MoE layer"
    return Answer(question=_TRAFFIC, number=number, unit=unit, text=text)


def answer_saving(
    inputs: Inputs,
    traffic: TrafficReport | None,
    chosen: ChosenPoint | None,
    setting: Setting | None,
) -> Answer:
    """Copies saved over plain routing in order; at the loss measured, where that is known."""
    if inputs.sweep is not None:
        return _answer_from_sweep(inputs, setting)
    if chosen is not None:
        return _answer_from_measured(chosen)
    if traffic is None:
        return Answer(
            question=_SAVING,
            number=_UNKNOWN,
            unit="",
            text="Add a plan (`c2r plan`), and the curve of `c2r sweep` for its quality.",
        )
    mean, policy = traffic.mean, ""
    if inputs.plan is not None and inputs.plan.is_constrained:
        policy = " What its policy saves beyond is not known: add the JSON of `c2r measure`."
    return Answer(
        question=_SAVING,
        number=_change(mean.copies_placed, mean.copies_in_order),
        unit="copies, by placement alone: the output stays the same",
        text=f"{mean.copies_placed:.2f} copies of each token instead of "
        f"{mean.copies_in_order:.2f}.{policy}",
        state=_better_if_fewer(mean.copies_placed, mean.copies_in_order),
    )


def answer_quality(inputs: Inputs, chosen: ChosenPoint | None) -> Answer:
    """Loss and right answers as measured of the plan, with their intervals, or that none were."""
    tasks = next((report for report in inputs.tasks if _is_of_plan(report, inputs)), None)
    if chosen is not None and chosen.point.policy != "top_k":
        loss = _quality_of_loss(chosen)
        if tasks is None:
            return loss
        answers = _quality_of_tasks(tasks)
        worst = "bad" if "bad" in (loss.state, answers.state) else loss.state
        text = f"{loss.text} Tasks: {answers.number} {answers.unit}; {answers.text}"
        return replace(loss, text=text, state=worst)
    if chosen is not None or (inputs.plan is not None and not inputs.plan.is_constrained):
        return Answer(
            question=_QUALITY,
            number="0 %",
            unit="loss: the output stays the same",
            text="The plan places experts and leaves routing as it is.",
            state="good",
        )
    if tasks is not None:
        return _quality_of_tasks(tasks)
    todo = "Add a plan: `c2r plan`."
    if inputs.plan is not None:
        todo = (
            "Run `c2r measure MODEL --plan PLAN --text OTHER.txt --json > measured.json`, or `c2r "
            "sweep` for many strengths, and add the file."
        )
    return Answer(question=_QUALITY, number=_NOT_MEASURED, unit="", text=todo)


def _is_of_plan(report: TaskReport, inputs: Inputs) -> bool:
    fingerprint = report.provenance.get("plan_fingerprint")
    return inputs.plan is None or fingerprint == inputs.plan.fingerprint


def _quality_of_loss(chosen: ChosenPoint) -> Answer:
    point = chosen.point
    low, high = point.loss_increase_interval
    state: State = "good"
    if point.loss_increase > ALLOWED_INCREASE:
        state = "bad" if low > ALLOWED_INCREASE else "warning"
    return Answer(
        question=_QUALITY,
        number=_percent(point.loss_increase),
        unit=f"loss on held-out text (95 %: {_percent(low)} to {_percent(high)})",
        text=f"{name_of(point)} ({chosen.reason}), {point.num_tokens:,} tokens, without "
        f"fine-tuning. c2r allows {100 * ALLOWED_INCREASE:g} % unless told otherwise.",
        state=state,
    )


def _quality_of_tasks(tasks: TaskReport) -> Answer:
    line, items = tasks.lines[-1], sum(line.num_items for line in tasks.lines if line.name != ALL)
    if not tasks.is_compared:
        mean = sum(line.accuracy for line in tasks.lines) / len(tasks.lines)
        return Answer(
            question=_QUALITY,
            number=f"{100 * mean:.1f} %",
            unit=f"right on {items:,} items of tasks",
            text="Compared with nothing: leave out --no-compare of `c2r evaluate`.",
        )
    low, high = (_points(end) for end in line.interval)
    state: State = "good" if not line.is_shown or line.difference > 0 else "bad"
    verdict = "no difference shown"
    if line.is_shown:
        verdict = "better" if line.difference > 0 else "worse"
    return Answer(
        question=_QUALITY,
        number=f"{_points(line.difference)} points",
        unit=f"of right answers to {items:,} items (95 %: {low} to {high})",
        text=f"{verdict}.",
        state=state,
    )


def answer_load(times: Times | None, chosen: ChosenPoint | None) -> Answer:
    """Work of the busiest rank before and after."""
    if times is not None:
        before, after = (mean_load(side.shares) for side in (times.before, times.after))
        state: State = "plain"
        if abs(after - before) > _SLACK:
            state = "good" if after < before else "bad"
        number = f"{before:.2f} \N{RIGHTWARDS ARROW} {after:.2f}"
    elif chosen is not None:
        number, state = f"{chosen.point.rank_load_max_over_mean:.2f}", "plain"
    else:
        return Answer(
            question=_LOAD, number=_UNKNOWN, unit="", text="Add a profile and a plan, or a sweep."
        )
    return Answer(
        question=_LOAD,
        number=number,
        unit="expert rows of the busiest rank over the mean",
        text="1 is even. All other ranks wait for the busiest.",
        state=state,
    )


def _answer_from_sweep(inputs: Inputs, setting: Setting | None) -> Answer:
    sweep = inputs.sweep
    assert sweep is not None, "asked only where a sweep is given"
    chosen = choose_point(sweep, inputs.plan, setting)
    point, baseline = chosen.point, sweep.baseline
    before = baseline.copies_in_order
    return Answer(
        question=_SAVING,
        number=_change(point.copies, before),
        unit=f"copies, at {_percent(point.loss_increase)} loss on held-out text",
        text=f"Policy {name_of(point)} ({chosen.reason}): {point.copies:.2f} copies of each "
        f"token instead of {before:.2f}. Placement alone gives {baseline.copies:.2f} at the same "
        "output.",
        state=_better_if_fewer(point.copies, before),
    )


def _answer_from_measured(chosen: ChosenPoint) -> Answer:
    point = chosen.point
    before = point.copies_in_order
    return Answer(
        question=_SAVING,
        number=_change(point.copies, before),
        unit=f"copies, at {_percent(point.loss_increase)} loss on held-out text",
        text=f"{name_of(point)} ({chosen.reason}): {point.copies:.2f} copies of each token "
        f"instead of {before:.2f} with experts in order.",
        state=_better_if_fewer(point.copies, before),
    )


def _visits(inputs: Inputs) -> str:
    topology = inputs.topology
    where = "W" if topology is None else f"On {topology.num_ranks} ranks, w"
    return (
        f"{where}ith experts in order, a token goes once to each rank that holds one of its experts"
    )


def _top_k(inputs: Inputs) -> int | None:
    if inputs.profile is not None:
        return inputs.profile.top_k
    return None if inputs.plan is None else max(layer.top_k for layer in inputs.plan.layers)


def _change(after: float, before: float) -> str:
    change = round(100 * (after / before - 1))
    return f"{change:+d} %".replace("-", MINUS) if change else "0 %"


def _better_if_fewer(after: float, before: float) -> State:
    change = round(100 * (after / before - 1))
    return "good" if change < 0 else "plain"  # a plan for time may send more: its time tells


def _percent(share: float) -> str:
    return f"{100 * share:+.2f} %".replace("-", MINUS)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", MINUS)
