"""`c2r optimize`: is it worth it for this model on this cluster, and with which plan?"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.clusters import (
    PARTS,
    PhaseOption,
    TokensOption,
    baseline_is,
    describe,
    tokens_for,
)
from c2r.cli.console import JsonOption, print_json, print_table, print_text, progress_bar
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import (
    ModelArgument,
    RequiredTextOption,
    load_model_and_tokenizer,
    resolve_texts,
)
from c2r.cli.processes import is_first_process
from c2r.cli.ranks import DEFAULT_TIMEOUT, TimeoutOption, together
from c2r.cli.runs import check_inputs, check_output, is_forced, record_now
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.results import Measurement
    from c2r.sweeps import Optimized
    from c2r.text import Text

_SWEPT = ("sweep.json", "sweep.profile.safetensors")
_FOUND = ("plan.safetensors", "report.html")


@runs_model()
def optimize(
    model: ModelArgument,
    cluster: Annotated[
        str,
        typer.Option(
            help="Where it will run: h100-8x2 and so on (`c2r clusters` lists them), or a YAML "
            "file."
        ),
    ],
    text: RequiredTextOption = None,
    max_loss_increase: Annotated[
        float, typer.Option(help="What may be lost: 0.003 is 0.3 % of the loss.")
    ] = 0.003,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy to try, as priced or priced=0.03,0.1; repeat.", show_default="priced"
        ),
    ] = None,
    tokens_per_rank: TokensOption = None,
    phase: PhaseOption = "prefill",
    tokens: Annotated[int, typer.Option(help="Tokens to calibrate on, and to measure.")] = 65536,
    loading: ModelOptions = DEFAULT_LOADING,
    seed: Annotated[int, typer.Option(help="Draws the parts of the text and the placement.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for plan, sweep, profile and report.")] = Path(
        "c2r-optimized"
    ),
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Find the plan of least time on a cluster within a loss.

    Where none pays, it says so. A policy is taken only where it saves more over placement alone
    than a prediction can tell. The first half of every text is profiled and planned on, the second
    half measures. Times are predicted from what was measured there and from the cluster's figures.
    An interrupted search resumes from the folder with the same command. Under torchrun each rank
    takes its share of the text.
    """
    from c2r.adapters.huggingface import dtype_name
    from c2r.planning import parse_policy
    from c2r.prediction import find_cluster
    from c2r.sweeps import optimize as search

    for name in _SWEPT:  # resumed from, where it is of this search
        check_inputs(out / name, model, cluster, *(text or ()))
    for name in _FOUND:
        check_output(out / name, model, cluster, *(text or ()))
    with together(timeout, "gloo") as ranks:
        find_cluster(cluster)
        for name in policy or ():
            parse_policy(name)
        texts = _texts(text, model)
        loaded, tokenizer = load_model_and_tokenizer(model, loading)
        dtype = dtype_name(loaded)
        out.mkdir(parents=True, exist_ok=True)
        record_now()
        found = search(
            loaded,
            tokenizer,
            texts,
            cluster,
            max_loss_increase=max_loss_increase,
            policies=tuple(policy or ("priced",)),
            tokens_per_rank=tokens_for(tokens_per_rank, phase),
            phase=phase,
            num_tokens=tokens,
            seed=seed,
            out=out / "sweep.json",
            progress=progress_bar,
            note=ranks.note,
            comm=ranks.comm,
            replaces=is_forced(),
        )
    if not is_first_process():
        return
    plan = out / "plan.safetensors"
    found.plan.save(plan)
    report = _write_report(found, out)
    if json:
        print_json({**_document(found, out, report), "dtype": dtype})
        return
    _show(found)
    print(_verdict(found, model, cluster, plan, report))
    print(f"Loss and routing were measured in {dtype}")


def _texts(paths: list[Path] | None, model: str) -> "tuple[Text, ...]":
    """The texts; experts of a user's model are not placed by the embedded ones."""
    if not paths and model != "tiny":
        raise InputError(
            "which text will the model serve? Give some of that kind (--text), for experts are "
            "placed by the text that is profiled"
        )
    return resolve_texts(paths)


def _write_report(found: "Optimized", out: Path) -> Path:
    """The page of profile, plan and sweep."""
    from c2r.reporting import build_report, read_inputs, write_page

    inputs = [out / name for name in ("sweep.profile.safetensors", "plan.safetensors")]
    page = out / "report.html"
    made = build_report(
        read_inputs([*inputs, out / "sweep.json"]),
        cluster=found.cluster,
        tokens_per_rank=found.workload.tokens_per_rank,
        phase=found.workload.phase,
    )
    write_page(made, page)
    return page


def _document(found: "Optimized", out: Path, report: Path) -> dict[str, object]:
    return {
        "out": str(out),
        "report": str(report),
        "worth": found.saving.worth,
        "is_worth_it": found.is_worth_it,
        "plan_fingerprint": found.plan.fingerprint,
        **describe(found.cluster, found.workload),
        "chosen": found.chosen.to_json(),
        "declined": None if found.declined is None else found.declined.to_json(),
        "in_order": {name: step.to_json() for name, step in found.in_order.items()},
        "placed": found.placed.to_json(),
        "planned": found.after.to_json(),
    }


def _show(found: "Optimized") -> None:
    from c2r.prediction.rows import DISPATCH_WORDS

    steps = [("in order", step) for step in found.in_order.values()]
    steps.append(("placed", found.placed))
    if found.chosen.policy != "top_k":
        steps.append((f"placed, {_name(found.chosen)}", found.after))
    rows = [
        [
            DISPATCH_WORDS[step.dispatcher],
            name,
            step.part("reorder"),
            step.part("exchange"),
            step.part("compute"),
            step.layer,
            step.total,
            f"{step.total / found.before.total:.2f}",
        ]
        for name, step in steps
    ]
    columns = ["a token is sent", "experts", "reorder", "exchange", "compute", "layer", "step"]
    where = f"{found.workload.tokens_per_rank:,} tokens a rank on {found.cluster.name}"
    print_table(f"Milliseconds, predicted: {where}", [*columns, "step of baseline"], rows)
    print_text(f"{baseline_is(found.before)} {PARTS}")


def _verdict(found: "Optimized", model: str, cluster: str, plan: Path, report: Path) -> str:
    """One paragraph: what it saves and costs, or why it does not; and what to run next."""
    from c2r.prediction import Worth
    from c2r.prediction.worth import (
        WORTH_RULE,
        fewness,
        hindrance,
        pays_at,
        smallness,
        switching,
    )
    from c2r.reporting.next_steps import PlanFiles, workload_options

    saving, topology = found.saving, found.cluster.topology
    layer = found.plan.layers[0]
    experts = layer.num_experts / topology.num_ranks
    hindered = hindrance(experts, topology, found.chosen.rank_load_max_over_mean)
    said = _gain(found) if saving.worth is Worth.PAYS else _no_gain(found)
    remarks = (
        said,
        _declined(found),
        f"It pays {pays_at(found.batches)}.",
        switching(found.in_order.values(), saving),
        hindered,
        fewness(found.chosen.num_tokens, layer.top_k, layer.num_experts),
        WORTH_RULE,
        smallness(found.before, found.workload),
    )
    files = PlanFiles(
        plan=found.plan,
        file=str(plan),
        profile=str(plan.with_name(_SWEPT[1])),
        where=f"--cluster {shlex.quote(cluster)}{workload_options(found.workload)}",
        model=model,
    )
    step = files.next_step(
        saving.worth, is_measured=True, is_own_text=False, lacks_replicas=bool(hindered)
    )
    lines = [" ".join(filter(None, remarks)), f"Next: {step.todo}: {step.command}"]
    replicate = files.replicate()
    if replicate != step and (hindered or saving.worth is not Worth.PAYS):
        lines.append(f"Or {replicate.todo}: {replicate.command}")
    return "\n".join([*lines, f"Figures: {report}"])


def _no_gain(found: "Optimized") -> str:
    """Why the plan does not pay, and what would change that."""
    saving = found.saving
    return (
        f"{saving.headline}, by the best plan within the loss ({_steps(found)}). {saving.origin} "
        f"Exchange takes {100 * found.before.exchange_share:.0f} % of a step. What would change "
        "that: more tokens a rank, a slower network, replicas, or more loss (--max-loss-increase)."
    )


def _gain(found: "Optimized") -> str:
    """What the plan saves, and what it costs."""
    chosen = found.chosen
    by, cost = "placement alone", "It costs no loss, for it places experts only"
    if chosen.policy != "top_k":
        by = f"{_name(chosen)} on the placement found"
        low, high = (100 * end for end in chosen.loss_increase_interval)
        cost = (
            f"The loss changes by {100 * chosen.loss_increase:+.2f} % (95 %: {low:+.2f} to "
            f"{high:+.2f}) without fine-tuning"
        )
    return (
        f"{found.saving.headline}, by {by} ({_steps(found)}). {found.saving.origin} Exchange took "
        f"{100 * found.before.exchange_share:.0f} % of the step. {cost}."
    )


def _declined(found: "Optimized") -> str:
    """Why the fastest policy within the loss is not taken; empty where there is none."""
    from c2r.prediction.worth import PREDICTION_ERROR

    fastest = found.declined
    if fastest is None or fastest.step_time is None:
        return ""
    less = 100 * (1 - fastest.step_time / found.placed.total)
    return (
        f"The fastest policy within the loss, {_name(fastest)}, takes {less:.1f} % less time a "
        f"step than placement alone. That is under {100 * PREDICTION_ERROR:.0f} %, and not worth "
        f"{100 * fastest.loss_increase:+.2f} % of the loss."
    )


def _steps(found: "Optimized") -> str:
    from c2r.prediction.rows import dispatch_words
    from c2r.prediction.time import milliseconds

    sent = dispatch_words(found.before.dispatcher, found.after.dispatcher)
    total = f"{milliseconds(found.before.total)} to {milliseconds(found.after.total)} ms"
    return f"{total}, a token sent {sent}"


def _name(found: "Measurement") -> str:
    """Policy and strength."""
    strength = found.strength if isinstance(found.strength, tuple) else (found.strength,)
    return f"{found.policy} {','.join(f'{value:g}' for value in strength)}"
