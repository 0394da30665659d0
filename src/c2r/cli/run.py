"""`c2r run`: a model on text, its experts spread over the ranks that torchrun started."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table, progress_bar
from c2r.cli.flags import chunks_of
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import (
    ModelArgument,
    TextOption,
    load_model_and_tokenizer,
    load_spread,
    resolve_texts,
)
from c2r.cli.processes import is_first_process, is_launched
from c2r.cli.ranks import DEFAULT_TIMEOUT, TimeoutOption, together
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.plans import Plan


@runs_model()
def run(
    model: ModelArgument,
    plan: Annotated[Path, typer.Option(help="Plan: placement, and the policy that is applied.")],
    text: TextOption = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens to run on; all the text if it has fewer.")
    ] = 65536,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Sequences per rank and step.")] = 4,
    dispatcher: Annotated[
        str,
        typer.Option(
            help="How a token is sent: zero_redundancy (once per rank), hierarchical (once per "
            "node, then per rank), all_gather (to all ranks) or k_fold (once per expert)."
        ),
    ] = "zero_redundancy",
    chunks: Annotated[
        str,
        typer.Option(
            help="Parts of a batch that travel and compute at the same time; auto tries several."
        ),
    ] = "1",
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp", help="Shard all else over the processes too, experts over groups (FSDP2)."
        ),
    ] = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    loading: ModelOptions = DEFAULT_LOADING,
    json: JsonOption = False,
) -> None:
    """Run a model on text with its experts spread over ranks.

    Reports loss, speed and traffic. Start it by `torchrun --nproc-per-node P -m c2r run MODEL
    --plan PLAN`, with as many processes as the plan has ranks, or a multiple. In one process the
    model runs whole, for comparison: the loss is the same.
    """
    if fsdp and not is_launched():
        raise InputError(
            "--fsdp needs several processes; start it by `torchrun --nproc-per-node NUMBER -m c2r "
            "run ...`"
        )
    cutting = {"seq_len": seq_len, "batch_size": batch_size, "num_tokens": tokens}
    with together(timeout, loading.backend) as ranks:
        from c2r import measuring
        from c2r.adapters.huggingface import ParallelOptions, freeing_at_once
        from c2r.plans import Plan
        from c2r.text import named_beginning, token_batches

        options = ParallelOptions(
            dispatcher=dispatcher, num_chunks=chunks_of(chunks), timeout=timeout
        )
        chosen, texts = Plan.load(plan), resolve_texts(text)
        facts = {"the text": [item.digest for item in texts], "the plan": chosen.fingerprint}
        told = {"the dispatcher": [dispatcher, chunks], "dtype": loading.dtype, "--fsdp": fsdp}
        ranks.agree({**facts, **cutting, **told})
        loaded, tokenizer = _load(model, loading, chosen, options, fsdp)
        batches = list(token_batches(texts, tokenizer, **cutting))
        freeing = freeing_at_once() if fsdp else nullcontext()
        with freeing, progress_bar("running, tokens of this rank", None) as advance:
            result = measuring.run(loaded, batches, advance)
    if is_first_process():
        told = {"dispatcher": dispatcher, "num_chunks": options.num_chunks}
        _report({**told, **named_beginning(tokenizer), **result.to_json()}, json)


def _load(
    model: str, loading: ModelOptions, plan: "Plan", options: Any, fsdp: bool
) -> tuple[Any, Any]:
    from c2r.adapters.huggingface import apply

    if is_launched():
        loaded, tokenizer = load_spread(model, loading, plan, options, fsdp)
    else:
        note("one process: the experts stay together; see `c2r run --help` for torchrun")
        loaded, tokenizer = load_model_and_tokenizer(model, loading)
    apply(loaded, plan)
    return loaded, tokenizer


def _report(document: dict[str, Any], json: bool) -> None:
    if json:
        print_json(document)
    else:
        rows = [
            [layer["layer"], layer["copies"], layer["remote_copies"]]
            for layer in document["layers"]
        ]
        if rows:
            print_table("Rows sent per token", ["layer", "all", "to other ranks"], rows)
    show = note if json else print
    show(
        f"loss {document['loss']:.6f} over {document['num_predicted']:,} tokens, "
        f"{document['tokens_per_second']:,.0f} tokens/s"
    )
