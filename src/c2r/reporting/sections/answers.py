"""The three questions of the first screen, answered in numbers of the files given."""

from collections.abc import Sequence

from c2r.prediction import TrafficReport
from c2r.profiling import CollaborationMetrics, mean_metrics
from c2r.reporting.charts import Answer
from c2r.reporting.inputs import Inputs
from c2r.reporting.sections.quality import choose_point, name_of

_COLLABORATION = "How collaborative is this model?"
_TRAFFIC = "What does its traffic cost today?"
_SAVING = "What would the plan save, at what quality?"

_UNKNOWN = "not known"


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
    k_fold = "" if top_k is None else f" A row for each of its experts (k-fold) would make {top_k}."
    if inputs.sweep is not None:
        number = f"{inputs.sweep.baseline.copies_contiguous:.2f}"
        text = f"{_visits(inputs)}; measured on held-out text.{k_fold}"
    elif traffic is not None:
        mean = traffic.mean
        number = f"{mean.copies_contiguous:.2f}"
        text = (
            f"{_visits(inputs)}.{k_fold} {mean.remote_copies_contiguous:.2f} of the "
            f"{mean.copies_contiguous:.2f} leave the token's own rank. The busiest rank does "
            f"{mean.rank_load_max_over_mean_contiguous:.2f} times the mean work."
        )
    elif top_k is not None:
        number = str(top_k)
        text = "One for each expert of a token. Add a plan to see copies per rank: `c2r plan`."
    else:
        number, text = _UNKNOWN, "Add a profile and a plan, or a sweep."
    unit = "" if number == _UNKNOWN else "copies of each token, in each MoE layer"
    return Answer(question=_TRAFFIC, number=number, unit=unit, text=text)


def answer_saving(inputs: Inputs, traffic: TrafficReport | None) -> Answer:
    """Copies saved over plain routing in order; at the loss measured, where a sweep is given."""
    if inputs.sweep is not None:
        return _answer_from_sweep(inputs)
    if traffic is None:
        return Answer(
            question=_SAVING,
            number=_UNKNOWN,
            unit="",
            text="Add a plan (`c2r plan`), and the curve of `c2r sweep` for its quality.",
        )
    mean = traffic.mean
    return Answer(
        question=_SAVING,
        number=_change(mean.copies_placed, mean.copies_contiguous),
        unit="copies, by placement alone: the output stays the same",
        text=f"{mean.copies_placed:.2f} copies of each token instead of "
        f"{mean.copies_contiguous:.2f}. The busiest rank does {mean.rank_load_max_over_mean:.2f} "
        f"times the mean work ({mean.rank_load_max_over_mean_contiguous:.2f} before). What the "
        "routing policy costs and saves beyond is not known: add the JSON of `c2r sweep`.",
    )


def _answer_from_sweep(inputs: Inputs) -> Answer:
    sweep = inputs.sweep
    assert sweep is not None, "asked only where a sweep is given"
    chosen = choose_point(sweep, inputs.plan)
    point, baseline = chosen.point, sweep.baseline
    before = baseline.copies_contiguous
    return Answer(
        question=_SAVING,
        number=_change(point.copies, before),
        unit=f"copies, at {100 * point.loss_increase:+.2f} % loss on held-out text",
        text=f"Policy {name_of(point)} ({chosen.reason}): {point.copies:.2f} copies of each "
        f"token instead of {before:.2f}, loss {point.loss:.4f} instead of "
        f"{baseline.loss:.4f}. Placement alone gives {baseline.copies:.2f} at the same output. "
        f"The busiest rank does {point.rank_load_max_over_mean:.2f} times the mean work.",
    )


def _visits(inputs: Inputs) -> str:
    ranks = inputs.num_ranks
    where = "W" if ranks is None else f"On {ranks} ranks, w"
    return (
        f"{where}ith the experts in order of their ids, a token goes once to each rank that holds "
        "one of its experts"
    )


def _top_k(inputs: Inputs) -> int | None:
    if inputs.profile is not None:
        return inputs.profile.top_k
    return None if inputs.plan is None else max(layer.top_k for layer in inputs.plan.layers)


def _change(after: float, before: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %".replace("-", "\N{MINUS SIGN}")
