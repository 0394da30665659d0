"""Whether the plan pays: the first screen of a report."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from c2r.prediction import Saving, StepTime, Worth
from c2r.prediction.rows import dispatch_words
from c2r.prediction.time import milliseconds, steps_by_dispatcher
from c2r.prediction.worth import (
    WORTH_RULE,
    fewness,
    hindrance,
    is_of_own_text,
    paying_batches,
    pays_at,
    smallness,
    switching,
)
from c2r.profiling import CollaborationProfile
from c2r.reporting.charts import Answer, Bar, State, Verdict
from c2r.reporting.inputs import Inputs
from c2r.reporting.next_steps import (
    NextStep,
    PlanFiles,
    cluster_options,
    model_in,
    workload_options,
)
from c2r.reporting.times import Times, mean_load
from c2r.types import Int

_UNKNOWN = "not known"
_ON_OWN_TEXT = "worth it on its own text"
_AT_A_PRICE = "at a price"
_STATES: dict[Worth, State] = {
    Worth.PAYS: "good",
    Worth.NO_DIFFERENCE: "plain",
    Worth.SLOWER: "bad",
}
_PARTS = ("dispatch", "combine", "compute", "reorder", "rest")
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
        remarks=(),
        basis="",
        bars=(),
        facts=(),
        todo=todo,
        command=command,
    )


def _by_time(inputs: Inputs, times: Times, quality: Answer) -> Verdict:
    state, word, headline = _sentence(inputs, times, quality)
    todo, command = _next_step(inputs, times, word)
    where = times.setting.cluster, times.setting.workload
    steps = steps_by_dispatcher(times.before.shares, *where)
    batches = paying_batches(times.before.shares, times.after.shares, *where)
    remarks = (
        _beyond_placement(inputs, times),
        switching(steps.values(), times.saving),
        _hindrance(inputs, times),
        _fewness(inputs),
        smallness(times.before.time, times.setting.workload),
    )
    return Verdict(
        state=state,
        word=word,
        headline=headline,
        reason=f"{_because(times)} It pays {pays_at(batches)}.",
        remarks=tuple(filter(None, remarks)),
        basis=f"{_source(inputs, times)} {WORTH_RULE}",
        bars=(_bar("before", times.before.time), _bar("after", times.after.time)),
        facts=(),
        todo=todo,
        command=command,
    )


def _sentence(inputs: Inputs, times: Times, quality: Answer) -> tuple[State, str, str]:
    saving, where = times.saving, times.setting.cluster.name
    headline = f"{saving.headline} on {where}"
    if inputs.plan is not None and inputs.plan.is_constrained and not times.is_measured:
        placed = f"its placement alone takes {saving.change} on {where}"
        return "plain", _UNKNOWN, f"The policy was not measured; {placed}"
    if saving.worth is Worth.PAYS and quality.state in ("bad", "warning"):
        falls = "falls" if quality.state == "bad" else "may fall"
        return "warning", _AT_A_PRICE, f"{headline}, but quality {falls}"
    if saving.worth is Worth.PAYS and _is_own_text(inputs, times):
        return "plain", _ON_OWN_TEXT, headline
    return _STATES[saving.worth], saving.worth, headline


def _because(times: Times) -> str:
    """What a step and a layer take, and where the difference comes from."""
    before, after = times.before.time, times.after.time
    layer, step = (
        f"{milliseconds(one)} to {milliseconds(other)} ms"
        for one, other in ((before.layer, after.layer), (before.total, after.total))
    )
    return (
        f"A step goes from {step}, an MoE layer from {layer}. {times.saving.origin} Exchange took "
        f"{100 * before.exchange_share:.0f} % of the step."
    )


def _beyond_placement(inputs: Inputs, times: Times) -> str:
    """What a measured policy saves beyond its placement, which costs no quality; else empty."""
    plan, alone = inputs.plan, times.placed
    if plan is None or alone is None or not plan.is_constrained:
        return ""
    saving = Saving(alone, times.after.time)
    remark = (
        f"By its placement alone, which costs no quality, a step takes {milliseconds(alone.total)} "
        f"ms; with the policy {milliseconds(times.after.time.total)}: {saving.change}"
    )
    if saving.worth is Worth.PAYS:
        return f"{remark}."
    return f"{remark}, so the policy does not pay. Plan without `--policy`."


def _fewness(inputs: Inputs) -> str:
    profile = inputs.profile
    if profile is None:
        return ""
    return fewness(profile.num_tokens, profile.top_k, profile.num_experts)


def _hindrance(inputs: Inputs, times: Times) -> str:
    """What placement cannot save; nothing where there are replicas."""
    if inputs.profile is None or inputs.plan is None or inputs.plan.num_replicas:
        return ""
    topology = times.setting.cluster.topology
    experts = inputs.profile.num_experts / topology.num_ranks
    return hindrance(experts, topology, mean_load(times.after.shares))


def _source(inputs: Inputs, times: Times) -> str:
    if times.is_measured:
        routing = "After: the routing as measured under the plan on held-out text."
    else:
        routing = "After: plain top-k's routing on the plan's placement."
        if _is_own_text(inputs, times):
            routing += " Both on text that the plan was made from."
    notes = f" {times.setting.note}" if times.setting.note else ""
    work = times.setting.workload
    sent = dispatch_words(times.before.time.dispatcher, times.after.time.dispatcher)
    return (
        f"Predicted for {work.tokens_per_rank:,} tokens a rank, {work.phase}, on "
        f"{times.setting.place}. Before: experts in order, a token sent {sent}. {routing}{notes}"
    )


def _is_own_text(inputs: Inputs, times: Times) -> bool:
    """Whether the plan is judged on text that it was made from."""
    plan, profile = inputs.plan, inputs.profile
    if plan is None or profile is None or times.is_measured:
        return False
    return is_of_own_text(profile, plan)


def _bar(name: str, step: StepTime) -> Bar:
    layers = len(step.layers)
    inside = (step.part(part) * layers for part in ("dispatch", "combine", "compute", "reorder"))
    launches = step.part("launches") * layers
    values = (*inside, step.rest + launches)
    return Bar(name=name, parts=dict(zip(_PARTS, values, strict=True)), layer=step.layer)


def _next_step(inputs: Inputs, times: Times, word: str) -> NextStep:
    profile = inputs.name_of("profile") or "profile.safetensors"
    where = cluster_options(times.setting.cluster) + workload_options(times.setting.workload)
    if inputs.plan is None:
        sweep = f"--sweep {_file(inputs, 'sweep')} --max-loss-increase 0.003"
        command = f"c2r plan {shlex.quote(profile)} {where} {sweep} --out plan.safetensors"
        return NextStep("make the plan of this point", command)
    named = None if inputs.profile is None else model_in(inputs.profile.provenance)
    files = PlanFiles(
        plan=inputs.plan,
        file=inputs.name_of("plan") or "plan.safetensors",
        profile=profile,
        where=where,
        model=named or model_in(inputs.plan.provenance),
        measurement=inputs.name_of("measurement") if times.is_measured else None,
    )
    if word == _AT_A_PRICE:
        return files.tune()
    return files.next_step(
        times.saving.worth,
        is_measured=times.is_measured,
        is_own_text=_is_own_text(inputs, times),
        lacks_replicas=bool(_hindrance(inputs, times)),
    )


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
