"""`c2r apply`: a checkpoint that carries its plan."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from c2r.cli.console import JsonOption, note, print_json, progress_bar
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import ModelArgument, load_model_and_tokenizer, resolve_model
from c2r.cli.runs import check_output


@runs_model()
def apply(
    model: ModelArgument,
    plan: Annotated[Path, typer.Option(help="Plan from `c2r plan`.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or missing.")],
    other_weights: Annotated[
        bool,
        typer.Option(
            "--other-weights",
            help="Accept a plan that was profiled on other weights of the same model.",
        ),
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Write the plan and the name of MODEL, a few kB; load no weights."
        ),
    ] = False,
    measurement: Annotated[
        Path | None,
        typer.Option(
            help="JSON of `c2r measure`, for the model card.",
            show_default="what the plan says of itself",
        ),
    ] = None,
    loading: ModelOptions = DEFAULT_LOADING,
    json: JsonOption = False,
) -> None:
    """Write a model folder with its plan, or the plan alone.

    The folder runs under its plan by `c2r.from_pretrained(DIR)` in transformers, and in vLLM and
    SGLang where c2r is installed beside them. Other loaders read it as the unconstrained model.
    Its experts keep their order: for an engine that places them in order, `c2r permute DIR` places
    them as planned too. A folder of the plan alone names the model, as adapters do. Both have a
    model card with the plan's figures; `c2r push` shares them.

    The model's files are copied, in little memory. With another --dtype it is loaded whole, and
    --device, --device-map, --offload-folder and --attn-implementation say how. An interrupted run
    resumes when it is started again.
    """
    from c2r.adapters.huggingface import apply as constrain
    from c2r.adapters.huggingface import constrain_folder, save_plan_only, save_pretrained
    from c2r.plans import Plan
    from c2r.results import Measurement

    check_output(out, model, plan)
    chosen = Plan.load(plan)
    measured = None if measurement is None else Measurement.load(measurement)
    if plan_only:
        save_plan_only(chosen, out, model, loading.revision, measured)
    elif loading.dtype == "auto":
        location, strict = resolve_model(model), not other_weights
        with progress_bar("writing, MB", None) as bar:

            def written(num_bytes: int, total: int) -> None:
                bar(num_bytes // 1_000_000, total // 1_000_000)

            constrain_folder(location, chosen, out, strict, measured, written, **loading.origin)
    else:
        loaded, tokenizer = load_model_and_tokenizer(resolve_model(model), loading)
        constrain(loaded, chosen, strict=not other_weights)
        save_pretrained(loaded, out, tokenizer, measurement=measured)
    if json:
        print_json({"out": str(out), "plan_fingerprint": chosen.fingerprint})
    note(f"wrote {out}; load it with c2r.from_pretrained({str(out)!r})")
    if not plan_only and chosen.topology.num_ranks > 1:
        folder, placed = (shlex.quote(f"{out}{end}") for end in ("", "-placed"))
        note(
            "next: renumber its experts too, so that engines place them as planned: "
            f"c2r permute {folder} --out {placed}"
        )
    if not plan_only and chosen.is_constrained:
        folder = shlex.quote(str(out))
        note(f"where vLLM serves it, `c2r serve-check {folder}` tells if it runs under the plan")
