"""Whether the plan pays: the first screen of a report."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from c2r.prediction import PRESETS, StepTime
from c2r.prediction.time import WORTH_IT
from c2r.profiling import CollaborationProfile
from c2r.reporting.charts import Answer, Bar, State, Verdict
from c2r.reporting.inputs import Inputs
from c2r.reporting.sections.answers import NOT_MEASURED, is_constrained
from c2r.reporting.times import Setting, Times, mean_load, milliseconds
from c2r.types import Int

_UNKNOWN = "not known"
_PARTS = ("dispatch", "combine", "compute", "copies", "rest")
"""Of a step, as `Bar` holds them."""


def judge(inputs: Inputs, times: Times | None, facts: Sequence[Answer]) -> Verdict:
    """The verdict.

    Args:
        inputs: the files.
        times: of a step before and after; None where they are not known.
        facts: quality, load and what is sent, in this order.
    """
    verdict = _unknown(inputs) if times is None else _by_time(inputs, times, facts[0])
    collapse = _collapse(inputs.profile, times)
    if collapse:
        verdict = replace(
            verdict,
            state="warning",
            word="collapsed",
            headline=f"The routing has collapsed: {collapse}",
            reason="Few copies are no gain then, and no placement helps: look at the model, or "
            f"profile it on other text. {verdict.reason}",
            todo="look at the load of its experts",
            command=f"c2r inspect {_file(inputs, 'profile')}",
        )
    return replace(verdict, facts=tuple(facts))


def _unknown(inputs: Inputs) -> Verdict:
    if inputs.profile is None:
        missing, todo = "the profile of the model", "profile the model"
        command = "c2r profile MODEL --out profile.safetensors"
    else:
        missing, todo = "a plan", "make a plan"
        command = f"c2r plan {_file(inputs, 'profile')} --cluster h100-8 --out plan.safetensors"
    return Verdict(
        state="plain",
        word=_UNKNOWN,
        headline=f"Add {missing} to see what it saves",
        reason="Times are predicted from a profile and a plan.",
        bars=(),
        facts=(),
        todo=todo,
        command=command,
    )


def _by_time(inputs: Inputs, times: Times, quality: Answer) -> Verdict:
    state, word, headline = _sentence(times, quality)
    if not times.is_measured and times.saved < WORTH_IT and _is_constrained(inputs):
        state, word = "plain", _UNKNOWN
        headline = "The placement alone does not pay, the policy may"
    todo, command = _next_step(inputs, times, word, quality)
    return Verdict(
        state=state,
        word=word,
        headline=headline,
        reason=f"{_because(times)} {_source(times)}",
        bars=(_bar("before", times.before.time), _bar("after", times.after.time)),
        facts=(),
        todo=todo,
        command=command,
    )


def _is_constrained(inputs: Inputs) -> bool:
    return inputs.plan is not None and is_constrained(inputs.plan)


def _sentence(times: Times, quality: Answer) -> tuple[State, str, str]:
    saved = times.saved
    where = f"of a step on {times.setting.cluster.name}"
    if saved < 0:
        return "bad", "slower", f"Adds {-100 * saved:.1f} % to the time {where}"
    if saved < WORTH_IT:
        return "bad", "not worth it", f"Saves {100 * saved:.1f} % {where}"
    headline = f"Saves {100 * saved:.0f} % {where}"
    if quality.state == "bad":
        return "warning", "at a price", f"{headline}, but quality falls"
    return "good", "worth it", headline


def _because(times: Times) -> str:
    """What changes in a layer, and what could at most be saved."""
    before, after = times.before.time, times.after.time
    share = f"{100 * before.exchange_share:.1f} %"
    exchanges, compute = (
        f"{milliseconds(before.part(part))} to {milliseconds(after.part(part))} ms"
        for part in ("exchange", "compute")
    )
    layer, step = (
        f"{milliseconds(one)} to {milliseconds(other)} ms"
        for one, other in ((before.layer, after.layer), (before.total, after.total))
    )
    said = f"exchanges go from {exchanges} and the experts of the busiest rank from {compute}"
    if times.saved >= WORTH_IT:
        return f"A step goes from {step}, an MoE layer from {layer}."
    if before.exchange_share < WORTH_IT:
        load = mean_load(times.before.shares)
        return (
            f"Because exchanges are {share} of a step. A plan can save these and the time that "
            f"ranks wait for the busiest one, whose load is {load:.2f} times the mean."
        )
    return f"Because in a layer {said}. Exchanges are {share} of a step."


def _source(times: Times) -> str:
    routing = (
        "After: the routing as measured under the plan on held-out text."
        if times.is_measured
        else "After: plain top-k's routing on the plan's placement."
    )
    notes = f" {times.setting.note}" if times.setting.note else ""
    work = times.setting.workload
    return (
        f"Predicted for {work.tokens_per_rank:,} tokens a rank, {work.phase}, on "
        f"{times.setting.place}. {routing}{notes}"
    )


def _bar(name: str, step: StepTime) -> Bar:
    layers = len(step.layers)
    inside = (step.part(part) * layers for part in ("dispatch", "combine", "compute", "index"))
    launches = step.part("launches") * layers
    values = (*inside, step.rest + launches)
    return Bar(name=name, parts=dict(zip(_PARTS, values, strict=True)), layer=step.layer)


def _next_step(inputs: Inputs, times: Times, word: str, quality: Answer) -> tuple[str, str]:
    """What to do, and the command."""
    profile, plan, where = _file(inputs, "profile"), _file(inputs, "plan"), _where(times.setting)
    make = f"c2r plan {profile} {where}"
    if inputs.plan is None:
        sweep = f"--sweep {_file(inputs, 'sweep')} --max-loss-increase 0.003"
        return "make the plan of this point", f"{make} {sweep} --out plan.safetensors"
    if word == "slower":
        return "place the experts for the least time", f"{make} --out plan.safetensors"
    if word == "not worth it":
        look = f"c2r estimate {profile} --plan {plan} {where}"
        return "see from which batch on it would pay", look
    if word == "at a price":
        tune = f"c2r finetune MODEL --plan {plan} --data TEXT --out tuned"
        return "recover the quality by fine-tuning", tune
    if word == _UNKNOWN or quality.number == NOT_MEASURED:
        measure = f"c2r measure MODEL --plan {plan} --json > measured.json"
        return "measure what the plan costs, and add the file", measure
    if _is_constrained(inputs):
        return "save the model with its plan", f"c2r apply MODEL --plan {plan} --out constrained"
    if any(layer.replicas.size for layer in inputs.plan.layers):
        export = f"c2r export --plan {plan} --model MODEL --format sglang --out placement.json"
        return "give the placement to an engine that knows replicas", export
    renumber = f"c2r permute MODEL --plan {plan} --out permuted"
    return "renumber the checkpoint, so that any engine places its experts as planned", renumber


def _where(setting: Setting) -> str:
    """The options that name the cluster."""
    cluster = setting.cluster
    preset = PRESETS.get(cluster.name)
    if preset is None:
        return "--cluster CLUSTER.yaml"
    if preset.topology == cluster.topology:
        return f"--cluster {cluster.name}"
    return f"--ranks {cluster.num_ranks} --nodes {cluster.num_nodes}"


def _file(inputs: Inputs, kind: str) -> str:
    return shlex.quote(inputs.name_of(kind) or f"{kind}.safetensors")


def _collapse(profile: CollaborationProfile | None, times: Times | None) -> str:
    """What has collapsed, or nothing.

    One rank has more than half of what it could have beyond its even share; or all tokens share
    so few experts that half as many again as each token needs do the work.
    """
    if times is not None:
        num_ranks = times.setting.cluster.num_ranks
        load = mean_load(times.after.shares)
        if num_ranks > 1 and load > (1 + num_ranks) / 2:
            return f"one rank of {num_ranks} does {100 * load / num_ranks:.0f} % of the work"
    if profile is None:
        return ""
    in_effect = float(np.mean([_effective_experts(layer.load) for layer in profile.layers]))
    least, most = profile.top_k, profile.num_experts
    if most > least and in_effect < least + (min(2 * least, most) - least) / 2:
        return f"{in_effect:.1f} of {most} experts do all the work, in effect"
    return ""


def _effective_experts(load: Int) -> float:
    """exp(entropy) of the shares of the load: E where all are chosen alike."""
    shares = load[load > 0] / load.sum()
    return math.exp(-float((shares * np.log(shares)).sum()))
