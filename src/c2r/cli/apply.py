"""`c2r apply`: a checkpoint that carries its plan."""

from pathlib import Path
from typing import Annotated

import typer

from c2r.cli.console import JsonOption, note, print_json
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import ModelArgument, load_model_and_tokenizer, resolve_model


@runs_model()
def apply(
    model: ModelArgument,
    plan: Annotated[Path, typer.Option(help="Plan from `c2r plan`.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or missing.")],
    other_weights: Annotated[
        bool,
        typer.Option(help="Accept a plan that was profiled on other weights of the same model."),
    ] = False,
    loading: ModelOptions = DEFAULT_LOADING,
    json: JsonOption = False,
) -> None:
    """Write a normal Hugging Face folder plus the plan.

    `c2r.from_pretrained(DIR)` then gives the constrained model. Other loaders read the same folder
    as the unconstrained model.
    """
    from c2r.adapters.huggingface import apply as constrain
    from c2r.adapters.huggingface import save_pretrained
    from c2r.plans import Plan

    chosen = Plan.load(plan)
    loaded, tokenizer = load_model_and_tokenizer(resolve_model(model), loading)
    constrain(loaded, chosen, strict=not other_weights)
    save_pretrained(loaded, out, tokenizer=tokenizer)
    if json:
        print_json({"out": str(out), "plan_fingerprint": chosen.fingerprint})
    note(f"wrote {out}; load it with c2r.from_pretrained({str(out)!r})")
