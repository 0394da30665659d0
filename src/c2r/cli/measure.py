"""`c2r measure`: what a plan costs in quality and sends, measured on text."""

from typing import Annotated, Any

import typer

from c2r.cli.console import JsonOption, print_json, print_table, progress_bar
from c2r.cli.models import (
    DtypeOption,
    ModelArgument,
    PlanOption,
    TextOption,
    load_model_and_tokenizer,
    plan_of,
    resolve_texts,
)


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
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Which parts of the text are taken.")] = 0,
    other_weights: Annotated[
        bool,
        typer.Option(help="Accept a plan that was profiled on other weights of the same model."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure loss, KL to the unconstrained model, copies and load under a plan.

    The routing is that of the plan's policy while it runs. With neither a plan nor a folder that
    holds one, all experts are on one rank.
    """
    from c2r import measuring
    from c2r.text import split_texts, token_batches

    loaded, tokenizer = load_model_and_tokenizer(model, dtype)
    texts = resolve_texts(text)
    chosen = plan_of(loaded, plan)
    batches = token_batches(
        split_texts(texts)[1] if half else texts,
        tokenizer,
        seq_len=seq_len,
        batch_size=batch_size,
        num_tokens=tokens,
        seed=seed,
    )
    with progress_bar("measuring, tokens", tokens) as advance:
        found = measuring.measure(
            loaded, batches, chosen, strict=not other_weights, on_batch=advance
        )
    document = {**found.to_json(), "expected": chosen.provenance.get("expected")}
    if json:
        print_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    expected = document["expected"] or {}
    rows = [
        [name.replace("_", " "), float(value), _cell(expected.get(name))]
        for name, value in document.items()
        if isinstance(value, int | float) and name not in ("strength", "num_ranks")
    ]
    print_table("On held-out text, under the plan", ["figure", "measured", "expected"], rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
