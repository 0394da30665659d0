"""`c2r sweep`: the curve of quality against traffic, policy by policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2r.cli.clusters import (
    ClusterOption,
    NodesOption,
    PhaseOption,
    RanksOption,
    TokensOption,
    cluster_of,
    tokens_for,
)
from c2r.cli.console import JsonOption, note, print_json, print_table, print_text, progress_bar
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import (
    ModelArgument,
    TextOption,
    load_model_and_tokenizer,
    note_work,
    resolve_texts,
)
from c2r.cli.processes import is_first_process
from c2r.cli.ranks import DEFAULT_TIMEOUT, TimeoutOption, together
from c2r.cli.runs import check_inputs, check_output

if TYPE_CHECKING:
    from c2r.results import Measurement, SweepResult, TransferResult


@runs_model()
def sweep(
    model: ModelArgument,
    ranks: RanksOption = None,
    nodes: NodesOption = None,
    cluster: ClusterOption = None,
    tokens_per_rank: TokensOption = None,
    phase: PhaseOption = "prefill",
    text: TextOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON to write, and to go on from; the profile goes beside it."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy to try, as budgeted or budgeted=0.05,0.1; repeat.",
            show_default="all that have a strength",
        ),
    ] = None,
    spread: Annotated[
        list[str] | None,
        typer.Option(help="Policy whose strengths are also spread by each layer's sensitivity."),
    ] = None,
    transfer: Annotated[
        bool,
        typer.Option(
            help="Also plan on each text and measure on each, with --tokens for every pair."
        ),
    ] = False,
    max_load: Annotated[
        float | None,
        typer.Option(help="Bound of the placement on the busiest rank's load over the mean."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to calibrate on, and to measure.")] = 65536,
    seq_len: Annotated[int, typer.Option(help="Tokens per window of text.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Windows per forward pass.")] = 16,
    loading: ModelOptions = DEFAULT_LOADING,
    seed: Annotated[int, typer.Option(help="Draws the parts of the text and the placement.")] = 0,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    plot: Annotated[Path | None, typer.Option(help="PNG of the curve to draw.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure what routing policies cost in quality and save.

    The first half of every text is profiled and planned on, experts placed for the least predicted
    time; the second half measures: loss, KL to the unconstrained model, copies per token and load,
    with 95 % intervals of the loss over windows of text. Times on the cluster are predicted from
    what was measured. An interrupted sweep resumes from --out with the same command. Under torchrun
    each rank takes its share of the text.
    """
    from c2r import sweeps
    from c2r.planning import parse_policy
    from c2r.reporting import check_matplotlib, write_sweep_chart

    for path in (out, plot, None if out is None else sweeps.profile_beside(out)):
        check_output(path, model, cluster, *(text or ()), resumes=path != plot)
    check_inputs(plot, out)
    if plot is not None:
        check_matplotlib()
    where = cluster_of(cluster, ranks, nodes)
    request = sweeps.SweepRequest(
        num_ranks=where.num_ranks,
        num_nodes=where.num_nodes,
        cluster=cluster,
        tokens_per_rank=tokens_for(tokens_per_rank, phase),
        phase=phase,
        policies=tuple(policy or ()),
        spread=tuple(spread or ()),
        max_load=max_load,
        transfer=transfer,
        num_tokens=tokens,
        seq_len=seq_len,
        batch_size=batch_size,
        seed=seed,
    )
    with together(timeout, "gloo") as processes:
        texts = resolve_texts(text)
        for name in (*(policy or ()), *(spread or ())):
            parse_policy(name)
        loaded, tokenizer = load_model_and_tokenizer(model, loading)
        note_work("profiling, then measuring under each plan,", tokens, seq_len, batch_size)
        found = sweeps.sweep(
            loaded,
            tokenizer,
            texts,
            request,
            out=out,
            progress=progress_bar,
            note=processes.note,
            comm=processes.comm,
        )
    if not is_first_process():
        return
    if plot is not None:
        write_sweep_chart(found, plot)
        note(f"wrote {plot}")
    if json:
        print_json(found.to_json())
    else:
        _show(found)


def _show(found: "SweepResult") -> None:
    in_order = found.baseline.copies_in_order
    rows = [
        [
            _name(point),
            point.loss,
            f"{100 * point.loss_increase:+.2f} %",
            point.kl,
            point.copies,
            f"{point.copies / in_order:.2f}",
            point.rank_load_max_over_mean,
            point.layer_time or 0.0,
            point.step_time or 0.0,
        ]
        for point in (found.baseline, *found.points)
    ]
    columns = [
        "policy",
        "loss",
        "change",
        "KL",
        "copies",
        "of in order",
        "rank load",
        "layer, ms",
        "step, ms",
    ]
    print_table(f"Quality and traffic on {found.topology.num_ranks} ranks", columns, rows)
    if found.transfer:
        _show_transfer(found.transfer)
    print_text(
        "loss: nats per token of held-out text. copies: rows sent per token and layer, the token's "
        "own rank counted; of in order: over those of plain top-k with experts in order. rank "
        "load: expert rows of the busiest rank over the mean. ms: predicted for the cluster from "
        "what came to each rank, a token sent once per rank, or once per node, then per rank, "
        "where that is faster."
    )


def _show_transfer(pairs: "Sequence[TransferResult]") -> None:
    from c2r.results import Target

    within = Target(max_loss_increase=0.003)
    rows = [
        [pair.calibration, pair.evaluation, pair.baseline.copies, pair.pick(within).copies]
        for pair in pairs
    ]
    columns = ["planned on", "measured on", "copies, top-k", "copies within +0.3 % loss"]
    print_table("Plans on other text", columns, rows)


def _name(point: "Measurement") -> str:
    if point.policy == "top_k":
        return point.policy
    strengths = point.strength if isinstance(point.strength, tuple) else (point.strength,)
    return f"{point.policy} {','.join(f'{value:g}' for value in strengths)}"
