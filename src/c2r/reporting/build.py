"""From the files given to the whole report."""

import importlib.metadata
from collections.abc import Iterator

from c2r.prediction import TrafficReport, predict_rank_traffic, predict_traffic
from c2r.profiling import CollaborationMetrics, measure_collaboration
from c2r.reporting.charts import Report, Section
from c2r.reporting.inputs import Inputs
from c2r.reporting.sections.answers import (
    answer_collaboration,
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
from c2r.reporting.sections.quality import show_quality


def build_report(inputs: Inputs) -> Report:
    """Everything that the files given can show.

    Raises:
        InputError: the profile holds pairs only at k > 2 and a plan is given.
    """
    metrics = None
    if inputs.profile is not None:
        metrics = [measure_collaboration(layer) for layer in inputs.profile.layers]
    traffic = None
    if inputs.profile is not None and inputs.plan is not None:
        traffic = predict_traffic(inputs.profile, inputs.plan)
    return Report(
        title=inputs.model_name,
        summary=_summary(inputs),
        answers=(
            answer_collaboration(inputs, metrics),
            answer_traffic(inputs, traffic),
            answer_saving(inputs, traffic),
        ),
        sections=tuple(_sections(inputs, metrics, traffic)),
    )


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
            parts.append("an interrupted profile")
    return ", ".join(parts) + f". A report of c2r {version}."


def _sections(
    inputs: Inputs,
    metrics: list[CollaborationMetrics] | None,
    traffic: TrafficReport | None,
) -> Iterator[Section]:
    profile, plan = inputs.profile, inputs.plan
    if inputs.sweep is not None:
        yield show_quality(inputs.sweep, plan)
    if profile is not None and plan is not None and traffic is not None:
        yield show_traffic(traffic, predict_rank_traffic(profile, plan))
    if profile is not None and metrics is not None:
        yield show_collaboration(profile, metrics, plan)
        yield show_load(profile, metrics, traffic)
    if plan is not None:
        yield show_plan(plan)
    for index, document in enumerate(inputs.benchmarks):
        yield show_benchmark(index, document)
    for index, document in enumerate(inputs.trainings):
        yield show_training(index, document)
    yield show_provenance(inputs)
