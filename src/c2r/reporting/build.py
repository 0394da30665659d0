"""From the files given to the whole report."""

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass

from c2r.prediction import Cluster, Phase, TrafficReport, predict_traffic
from c2r.profiling import CollaborationMetrics, measure_collaboration
from c2r.reporting.charts import Answer, Report, Section
from c2r.reporting.inputs import Inputs
from c2r.reporting.sections.answers import (
    answer_collaboration,
    answer_load,
    answer_quality,
    answer_saving,
    answer_traffic,
)
from c2r.reporting.sections.benchmark import show_benchmark, show_training
from c2r.reporting.sections.profile import (
    show_collaboration,
    show_load,
    show_plan,
    show_provenance,
    show_traffic,
)
from c2r.reporting.sections.quality import find_measured, show_quality
from c2r.reporting.sections.tasks import show_tasks
from c2r.reporting.sections.time import show_time
from c2r.reporting.times import Setting, Times, find_setting, find_times
from c2r.reporting.verdict import judge


def build_report(
    inputs: Inputs,
    *,
    cluster: Cluster | None = None,
    tokens_per_rank: int | None = None,
    phase: Phase | None = None,
) -> Report:
    """Everything that the files given can show.

    Args:
        inputs: the files.
        cluster: where times are predicted; None for what the files say, else H100s.
        tokens_per_rank: of a step; None for what the files say, else 4,096.
        phase: what is done with them; None for what the files say, else prefill.

    Raises:
        InputError: the profile holds pairs only at k > 2 and a plan is given; sizes in a file are
            damaged; layers, ranks or nodes of a measurement are not those of the plan.
        PlanMismatchError: the files are for other ranks or nodes than the cluster.
    """
    found = _find(inputs, find_setting(inputs, cluster, tokens_per_rank, phase))
    chosen = find_measured(inputs, found.setting)
    times = None
    if inputs.profile is not None and found.setting is not None:
        measured = None if chosen is None else chosen.point
        times = find_times(inputs.profile, inputs.plan, measured, found.setting)
    saving = answer_saving(inputs, found.traffic, chosen, found.setting)
    quality, load = answer_quality(inputs, chosen), answer_load(times, chosen)
    answers = (
        answer_collaboration(inputs, found.metrics),
        answer_traffic(inputs, found.traffic),
        saving,
        quality,
        load,
    )
    return Report(
        title=inputs.model_name,
        summary=_summary(inputs),
        verdict=judge(inputs, times, (quality, load, saving)),
        answers=answers,
        sections=tuple(_sections(inputs, found, times, answers)),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Found:
    """What is computed from the files once; None where they do not tell."""

    setting: Setting | None
    metrics: list[CollaborationMetrics] | None
    traffic: TrafficReport | None


def _find(inputs: Inputs, setting: Setting | None) -> _Found:
    metrics = traffic = None
    if inputs.profile is not None:
        metrics = [measure_collaboration(layer) for layer in inputs.profile.layers]
    if inputs.profile is not None and inputs.plan is not None:
        traffic = predict_traffic(inputs.profile, inputs.plan)
    return _Found(setting=setting, metrics=metrics, traffic=traffic)


def _summary(inputs: Inputs) -> str:
    version = importlib.metadata.version("c2r-moe")
    source = inputs.profile or inputs.plan
    if source is None:
        return f"A report of c2r {version}."
    layer = source.layers[0]
    parts = [
        f"{source.num_layers} MoE layers",
        f"{layer.num_experts} experts",
        f"k = {layer.top_k}",
    ]
    if inputs.profile is not None:
        parts.append(f"{inputs.profile.num_tokens:,} tokens profiled")
        if not inputs.profile.provenance.get("complete", True):
            parts.append("an unfinished profile")
    return ", ".join(parts) + f". A report of c2r {version}."


def _sections(
    inputs: Inputs, found: _Found, times: Times | None, answers: tuple[Answer, ...]
) -> Iterator[Section]:
    profile, plan = inputs.profile, inputs.plan
    collaboration, sent = answers[:2]
    if times is not None:
        yield show_time(times)
    if inputs.sweep is not None:
        before = None if times is None else times.before.time
        yield show_quality(inputs.sweep, plan, found.setting, before)
    for index, tasks in enumerate(inputs.tasks):
        yield show_tasks(index, tasks)
    if found.traffic is not None:
        yield show_traffic(found.traffic, sent)
    if profile is not None and found.metrics is not None:
        yield show_collaboration(profile, found.metrics, plan, collaboration)
        yield show_load(profile, found.metrics, found.traffic)
    if plan is not None:
        yield show_plan(plan)
    yield from _recorded(inputs)
    yield show_provenance(inputs)


def _recorded(inputs: Inputs) -> Iterator[Section]:
    """Benchmarks and trainings."""
    for index, document in enumerate(inputs.benchmarks):
        yield show_benchmark(index, document)
    for index, document in enumerate(inputs.trainings):
        yield show_training(index, document)
