"""`c2r measure`: what a plan costs in quality and sends, measured on text."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.clusters import (
    PhaseOption,
    PlannedClusterOption,
    TokensOption,
    cluster_for,
    describe,
    place_of,
    tokens_for,
    workload_with,
)
from c2r.cli.console import JsonOption, print_json, print_table, progress_bar
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import (
    ExpertParallelOption,
    ModelArgument,
    PlanOption,
    TextOption,
    load_on_ranks,
    note_work,
    plan_of,
    resolve_texts,
)
from c2r.cli.processes import is_first_process, num_processes
from c2r.cli.ranks import DEFAULT_TIMEOUT, TimeoutOption, together

if TYPE_CHECKING:
    from c2r.plans import Plan
    from c2r.results import Measurement


@runs_model()
def measure(
    model: ModelArgument,
    plan: PlanOption = None,
    text: TextOption = None,
    half: Annotated[
        bool, typer.Option(help="Only the second half of each text, which `c2r sweep` measures.")
    ] = False,
    tokens: Annotated[
        int, typer.Option(help="Tokens to measure, or all the text if less.")
    ] = 65536,
    seq_len: Annotated[int, typer.Option(help="Tokens per window of text.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Windows per forward pass.")] = 16,
    loading: ModelOptions = DEFAULT_LOADING,
    expert_parallel: ExpertParallelOption = False,
    seed: Annotated[int, typer.Option(help="Which parts of the text are taken.")] = 0,
    other_weights: Annotated[
        bool,
        typer.Option(
            "--other-weights",
            help="Accept a plan that was profiled on other weights of the same model.",
        ),
    ] = False,
    cluster: PlannedClusterOption = None,
    tokens_per_rank: TokensOption = None,
    phase: PhaseOption = "prefill",
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Measure loss, copies, load and time under a plan.

    KL is to the unconstrained model. The routing is that of the plan's policy; milliseconds are
    predicted from what was measured to come to each rank, and beside them those of plain top-k on
    the same placement. With neither a plan nor a folder that holds one, all experts are on one
    rank. Under torchrun each rank takes its share of the text; with --expert-parallel no rank holds
    all experts.
    """
    with together(timeout, loading.backend if expert_parallel else "gloo") as ranks:
        from c2r import measuring
        from c2r.adapters.huggingface import dtype_name
        from c2r.plans import Plan
        from c2r.text import named_beginning, split_texts, token_batches

        texts = resolve_texts(text)
        if plan is not None:  # before a model is loaded for it
            cluster_for(cluster, Plan.load(plan))
        tokens_for(tokens_per_rank, phase)
        facts = {"the text": [item.digest for item in texts], "half": half, "tokens": tokens}
        cutting = {"seq_len": seq_len, "batch_size": batch_size, "seed": seed}
        ranks.agree({**facts, **cutting, "dtype": loading.dtype})
        loaded, tokenizer = load_on_ranks(model, loading, expert_parallel, timeout)
        chosen = plan_of(loaded, plan)
        ranks.agree({"the plan": chosen.fingerprint})
        half_or_all = split_texts(texts)[1] if half else texts
        batches = token_batches(half_or_all, tokenizer, num_tokens=tokens, **cutting)
        strict = not other_weights
        most = min(tokens, sum(len(item.content.encode()) for item in half_or_all))
        note_work("measuring", most, seq_len, batch_size)
        with progress_bar("measuring, tokens of this rank", most // num_processes()) as advance:
            found = measuring.measure(
                loaded, batches, chosen, strict=strict, on_batch=advance, comm=ranks.comm
            )
        document: dict[str, Any] = {**found.to_json(), **named_beginning(tokenizer)}
        document["dtype"] = dtype_name(loaded)
        document["expected"] = chosen.provenance.get("expected")
        document["time"] = _times(loaded, found, chosen, cluster, tokens_per_rank, phase)
    if is_first_process():
        _report(document, json)


def _report(document: dict[str, Any], json: bool) -> None:
    if json:
        print_json(document)
    else:
        _show(document)


_FIGURES = {
    "loss": "loss, nats a token",
    "perplexity": "perplexity",
    "loss_increase": "loss increase (95 %)",
    "kl": "KL of plain top-k, nats a token",
    "top1_agreement": "likeliest token is the same",
    "copies": "copies per token",
    "copies_in_order": "copies per token, experts in order",
    "remote_copies": "copies per token to other ranks",
    "node_copies": "nodes that a token visits",
    "rank_load_max_over_mean": "load of the busiest rank, over mean",
    "active_experts_per_rank": "experts of a rank that a batch uses",
    "num_tokens": "tokens predicted",
}
"""What people call the figures of a measurement."""


def _show(document: dict[str, Any]) -> None:
    from c2r.results import renamed

    expected = renamed(document["expected"] or {})
    measured = {name: _cell(name, document[name]) for name in _FIGURES}
    low, high = (100 * end for end in document["loss_increase_interval"])
    measured["loss_increase"] += f" ({low:+.2f} to {high:+.2f})"
    rows = [
        [title, measured[name], _cell(name, expected.get(name))] for name, title in _FIGURES.items()
    ]
    title = f"On held-out text, under the plan, in {document['dtype']}"
    print_table(title, ["figure", "measured", "expected"], rows)
    time = document["time"]
    if time is not None:
        _show_time(time, document["policy"])


def _times(
    model: Any,
    found: "Measurement",
    plan: "Plan",
    cluster: str | None,
    tokens_per_rank: int | None,
    phase: str,
) -> dict[str, Any] | None:
    """The step from the measured shares, under the policy and plain; None on a single rank."""
    from c2r.adapters.huggingface import find_sites
    from c2r.adapters.huggingface.sizes import sizes_of
    from c2r.prediction.shares import measured_shares
    from c2r.prediction.time import measured_time

    if plan.topology.num_ranks == 1:
        return None
    where = cluster_for(cluster, plan)
    sizes = sizes_of(model, find_sites(model)[0].num_experts)
    workload = workload_with(sizes, tokens_per_rank, phase)
    plain = found.reference or found
    steps = [
        measured_time(measured_shares(each), where, workload).to_json() for each in (found, plain)
    ]
    return {**describe(where, workload), "policy": steps[0], "top_k": steps[1]}


def _show_time(time: dict[str, Any], policy: str) -> None:
    from c2r.prediction.rows import dispatch_words

    rows = [
        [name, step["layer"], step["step"], f"{100 * step['exchange_share']:.0f} %"]
        for name, step in (
            (f"under the plan's policy, {policy}", time["policy"]),
            ("plain top-k, same placement", time["top_k"]),
        )
    ]
    workload = time["workload"]
    title = (
        f"Milliseconds, predicted from the above: {workload['tokens_per_rank']:,} tokens a rank, "
        f"{workload['phase']}, on {place_of(time)}, a token sent "
        f"{dispatch_words(time['top_k']['dispatcher'], time['policy']['dispatcher'])}"
    )
    print_table(title, ["routing", "layer", "step", "exchange of step"], rows)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "loss_increase":
        return f"{100 * value:+.2f} %"
    if name == "top1_agreement":
        return f"{100 * value:.1f} %"
    return f"{value:,}" if name == "num_tokens" else f"{value:.3f}"
