"""`c2r serve-check`: a constrained model in a serving engine, beside transformers."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from c2r.cli.console import JsonOption, print_json, print_table
from c2r.cli.models import ModelArgument, TextOption, load_model_and_tokenizer, resolve_texts
from c2r.errors import InputError

_WINDOW = 256


def serve_check(
    model: ModelArgument,
    python: Annotated[
        Path, typer.Option(help="Python of the environment that holds the engine and c2r.")
    ],
    engine: Annotated[str, typer.Option(help="The engine: vllm.")] = "vllm",
    text: TextOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to compare on.")] = 256,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a token's log-probability, in nats.")
    ] = 1e-4,
    other_sets: Annotated[
        float,
        typer.Option(help="Share of tokens that may choose other experts, where scores tie."),
    ] = 0.0,
    json: JsonOption = False,
) -> None:
    """Compare a constrained model in a serving engine with transformers, in float32.

    Exit status 1: a layer does not run under the plan, or the answers differ by more than allowed.
    """
    import torch

    from c2r.adapters.huggingface import applied_plan
    from c2r.serving.check import answer_of_model, answer_of_vllm, compare
    from c2r.text import token_batches

    if engine != "vllm":
        raise InputError(f"--engine {engine} cannot be checked; choose vllm")
    loaded, tokenizer = load_model_and_tokenizer(model, "float32")
    plan = applied_plan(loaded)
    if plan is None:
        raise InputError(f"{model} holds no plan; make a constrained folder with `c2r apply`")
    seq_len = min(tokens, _WINDOW)
    batches = token_batches(
        resolve_texts(text), tokenizer, seq_len=seq_len, batch_size=1, num_tokens=tokens
    )
    ids = torch.cat([batch["input_ids"] for batch in batches if batch["attention_mask"].all()])
    agreement = compare(answer_of_model(loaded, ids), answer_of_vllm(python, model, ids))
    holds = agreement.holds(tolerance, other_sets)
    if json:
        document = {**asdict(agreement), "agrees": holds, "num_tokens": ids.numel()}
        print_json({**document, "plan_fingerprint": plan.fingerprint})
    else:
        rows = [
            (layer.layer, "yes" if layer.under_plan else "NO", f"{layer.other_sets:.2%}")
            for layer in agreement.layers
        ]
        title = f"{engine} and transformers under plan {plan.fingerprint}, {ids.numel()} tokens"
        print_table(title, ("layer", "under the plan", "other experts chosen"), rows)
        print(
            f"log-probabilities differ by at most {agreement.log_prob_difference:.1e}: "
            f"{'agrees' if holds else 'DIFFERS'}"
        )
    if not holds:
        raise typer.Exit(1)
