"""`c2r serve-check`: a constrained model in a serving engine, beside transformers."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import (
    ModelArgument,
    TextOption,
    load_model_and_tokenizer,
    resolve_model,
    resolve_texts,
)
from c2r.errors import InputError

_WINDOW = 256
_NO_PLAN = "{} holds no plan; make a constrained folder with `c2r apply`"


@runs_model(dtype="float32")
def serve_check(
    model: ModelArgument,
    python: Annotated[
        Path | None, typer.Option(help="Python of the environment that holds the engine and c2r.")
    ] = None,
    engine: Annotated[str, typer.Option(help="The engine: vllm.")] = "vllm",
    routed: Annotated[
        Path | None,
        typer.Option(
            help="Instead of running the engine: a .npz of N.token_ids and N.routed_experts that "
            "its requests returned."
        ),
    ] = None,
    placement: Annotated[
        Path | None,
        typer.Option(
            help="A file of `c2r export` that the engine is started with: refused unless it places "
            "the experts of MODEL as its plan does. Alone, nothing else is checked."
        ),
    ] = None,
    text: TextOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to compare on.")] = 256,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a token's log-probability, in nats.")
    ] = 1e-4,
    other_sets: Annotated[
        float,
        typer.Option(help="Share of a layer's tokens that may choose other experts; ties may."),
    ] = 0.0,
    loading: ModelOptions = DEFAULT_LOADING,
    json: JsonOption = False,
) -> None:
    """Check that an engine serves a model under its plan.

    Replays in transformers, by default in float32, the experts that the engine chose. Tells for
    each layer whether it runs under the plan, and for how many tokens transformers would have
    chosen others; ties, of equal scores, apart. Exit status 1: a layer does not run under the plan,
    or choices or log-probabilities differ by more than allowed.
    """
    from c2r.adapters.huggingface import applied_plan
    from c2r.serving.check import compare

    if placement is not None:
        _check_placement(model, placement)
    if placement is not None and python is None and routed is None:
        if json:
            print_json({"placement": str(placement), "agrees": True})
        return
    _check_asked(engine, python, routed)
    loaded, tokenizer = load_model_and_tokenizer(model, loading)
    plan = applied_plan(loaded)
    if routed is not None:
        sequences, answer = _returned(model, routed)
    elif plan is None:
        raise InputError(_NO_PLAN.format(model))
    else:
        sequences, answer = _answered(model, str(python), _sequences(text, tokenizer, tokens))
    agreement = compare(loaded, sequences, answer)
    holds = agreement.holds(tolerance, other_sets)
    num_tokens = sum(map(len, sequences))
    fingerprint = None if plan is None else plan.fingerprint
    if json:
        document = {**asdict(agreement), "agrees": holds, "num_tokens": num_tokens}
        print_json({**document, "plan_fingerprint": fingerprint})
    else:
        under = "no plan" if fingerprint is None else f"plan {fingerprint}"
        _tell(agreement, f"{engine} and transformers under {under}, {num_tokens} tokens", holds)
    if not holds:
        raise typer.Exit(1)


def _check_asked(engine: str, python: Path | None, routed: Path | None) -> None:
    if engine != "vllm":
        raise InputError(f"--engine {engine} cannot be checked; choose vllm")
    if (python is None) == (routed is None):
        raise InputError("give --python of the engine's environment, or --routed FILE.npz")


def _check_placement(model: str, placement: Path) -> None:
    from c2r.plans.model_folder import read_plan
    from c2r.serving.placements import check_placement

    plan = read_plan(Path(model))
    if plan is None:
        raise InputError(_NO_PLAN.format(model))
    check_placement(model, plan, placement)
    note(f"{placement} places the experts of {model} as its plan {plan.fingerprint} does")


def _answered(model: str, python: str, sequences: Any) -> Any:
    from c2r.serving.check import answer_of_vllm

    return sequences, answer_of_vllm(python, resolve_model(model), sequences)


def _returned(model: str, routed: Path) -> Any:
    from c2r.adapters.huggingface import read_model_layers
    from c2r.serving.routed import read_routed

    return read_routed(routed, read_model_layers(resolve_model(model)))


def _sequences(text: Any, tokenizer: Any, num_tokens: int) -> Any:
    from c2r.text import token_batches

    batches = token_batches(
        resolve_texts(text),
        tokenizer,
        seq_len=min(num_tokens, _WINDOW),
        batch_size=1,
        num_tokens=num_tokens,
    )
    return [batch["input_ids"][0] for batch in batches if batch["attention_mask"].all()]


def _tell(agreement: Any, title: str, holds: bool) -> None:
    shown = {True: "yes", False: "NO", None: "not known"}
    rows = [
        (
            layer.layer,
            shown[layer.under_plan],
            f"{layer.other_sets:.2%}",
            f"{layer.tied_sets:.2%}",
        )
        for layer in agreement.layers
    ]
    print_table(title, ("layer", "under the plan", "other experts chosen", "ties"), rows)
    verdict = "agrees" if holds else "DIFFERS"
    if agreement.log_prob_difference is None:
        print(f"the engine's log-probabilities are not known: {verdict}")
    else:
        difference = agreement.log_prob_difference
        print(f"with the same experts log-probabilities differ by {difference:.1e}: {verdict}")
