"""A model folder that carries its plan: an ordinary Hugging Face folder plus one file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from c2r.adapters.checkpoints.shards import check_files_inside
from c2r.adapters.huggingface.card import CARD_FILE, model_card
from c2r.adapters.huggingface.model_class import empty_model, model_class, read_config
from c2r.adapters.huggingface.parallel_models import check_whole
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.sources import Source, find_source, is_hub_name
from c2r.adapters.huggingface.taps.install import applied_plan, apply
from c2r.artifacts import atomic_folder, write_text
from c2r.errors import InputError, ModelError, PlanError, one_line
from c2r.parallel import named_failure
from c2r.plans import Plan
from c2r.plans.model_folder import PLAN_FILE
from c2r.results import Measurement

_CONFIG_ERRORS = (
    ValueError, KeyError, ImportError, TypeError, AttributeError, IndexError, ZeroDivisionError,
    AssertionError, RecursionError, OverflowError, NotImplementedError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a damaged or unknown configuration."""
_NEXT = {
    False: "use a supported MoE model",
    True: "install what it names, or take a checkpoint that is not quantised",
}


def load_model(
    source: str | Path | Source, dtype: torch.dtype | str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """A causal language model with routers that c2r can constrain, in evaluation mode.

    A source with a plan gives the constrained model, as `from_pretrained` does.

    Args:
        source: a model folder, a plan-only folder, or the name of either on the Hugging Face hub;
            or what `find_source` found there.
        dtype: of the weights; None keeps that of the checkpoint.
        kwargs: passed on to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        InputError: nothing there that can be loaded.
        ModelError: not a Mixture-of-Experts model, or one that is not supported.
        ArtifactError: the folder's plan cannot be read.
        PlanMismatchError: the folder's plan is not the one that its config names, or not of
            these weights.
    """
    return _load(find_source(source, **kwargs), dtype)


def _load(found: Source, dtype: torch.dtype | str | None) -> PreTrainedModel:
    model = load_weights(found.location, dtype, **found.options)
    constrain(model, found.plan)
    return model


def load_weights(
    source: str | Path, dtype: torch.dtype | str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The model of `load_model` in evaluation mode, unconstrained and not yet known to be MoE."""
    with _loading(source):
        options = {"trust_remote_code": False, **kwargs, "output_loading_info": True}
        chosen = model_class(read_config(source, **options))
        model, info = chosen.from_pretrained(str(source), dtype=dtype or "auto", **options)
    _check_weights(source, info)
    return model.eval()


def skeleton_of(source: str | Path, **kwargs: Any) -> PreTrainedModel:
    """The model without weights, on the meta device. Raises as `load_model`."""
    with _loading(source), torch.device("meta"):
        return empty_model(read_config(source, **kwargs), **kwargs)


def weightless(source: str | Path, **kwargs: Any) -> PreTrainedModel:
    """As `skeleton_of`, but with its buffers, as a model that is to run needs them."""
    with _loading(source), init_empty_weights(include_buffers=False):
        return empty_model(read_config(source, **kwargs), **kwargs)


def _check_weights(source: str | Path, info: Mapping[str, Any]) -> None:
    """Raises `InputError` if weights are missing: transformers would draw them at random."""
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has other shapes of")):
        names = sorted(str(name) for name in info.get(key, ()))
        if names:
            raise InputError(
                f"{source} {what} {len(names)} of the model's weights (first {names[0]}); download "
                "the model again"
            )


@contextmanager
def _loading(source: str | Path) -> Iterator[None]:
    """Checks that there is something to load, and tells what failed in the user's words."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{source} has no config.json; give a folder of a transformers model")
    if not folder.is_dir() and not is_hub_name(source):
        raise InputError(
            f"there is no model folder {source}; give one, or a hub name like allenai/OLMoE-1B-7B"
        )
    if folder.is_dir():
        check_files_inside(folder)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, UnpicklingError) as error:
        lost = named_failure(f"the loading of {source}", error)
        if lost is not None:
            raise lost from None
        raise InputError(
            f"cannot load a model from {source}{_packed(folder)}: {_first_line(error)}; give a "
            "model folder, or a hub name while online"
        ) from error
    except _CONFIG_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source} needs code of its own, which c2r runs only where you trust it: give "
                "--trust-remote-code, in Python trust_remote_code=True"
            ) from None
        raise ModelError(
            f"transformers cannot load {source}{_packed(folder)} as a causal language model: "
            f"{_first_line(error)}; {_NEXT[bool(_packed(folder))]}"
        ) from error


def _packed(folder: Path) -> str:
    """Words for how a model folder is quantised; none where it is not."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return f" (quantised, {config['quantization_config']['quant_method']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def constrain(model: PreTrainedModel, plan: Plan | None) -> None:
    """Applies the plan that a model came with; without one, checks that it is MoE."""
    if plan is not None:
        apply(model, plan)
    else:
        find_sites(model)


def save_pretrained(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    measurement: Measurement | None = None,
) -> None:
    """Writes a constrained model, its plan and a model card to a new folder.

    Any program reads the folder as an ordinary model, unconstrained; `from_pretrained` reads it
    with its plan. The plan is stamped with the fingerprint of the weights that are saved. The
    folder appears whole or not at all.

    Args:
        model: a model that a plan was applied to.
        folder: must not exist, or be empty.
        tokenizer: saved too, if given.
        state_dict: the weights; default: the model's own. For a parallel model the result of
            `gather_state_dict`, on the one rank that writes.
        measurement: of the plan, for the card.

    Raises:
        PlanError: no plan is applied.
        PlanMismatchError: the measurement is of another plan.
        InputError: the folder is not empty or cannot be written, or the model is parallel, which
            `save_parallel` saves.
    """
    if not state_dict:
        check_whole(model)
    with atomic_folder(Path(folder)) as temporary:
        write_folder(model, temporary, tokenizer, state_dict, measurement)


def write_folder(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    state_dict: Mapping[str, Tensor] | None = None,
    measurement: Measurement | None = None,
    known: Mapping[str, str] | None = None,
) -> None:
    """Writes what `save_pretrained` does into `folder`; with an empty dict all but the weights.

    `known` is the model's fingerprint, where this process alone cannot make it.
    """
    plan = applied_plan(model)
    if plan is None:
        raise PlanError("the model carries no plan; apply one before saving")
    name = str(getattr(model.config, "name_or_path", "")) or None
    card = model_card(plan, name, measurement)
    # A copy: transformers takes tied weights out of the dict that it is given.
    weights = None if state_dict is None else dict(state_dict)
    told = {} if known is None else {"model_fingerprint": dict(known)}
    model.save_pretrained(folder, state_dict=weights, **told)
    write_text(folder / CARD_FILE, card)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def from_pretrained(
    source: str | Path, dtype: torch.dtype | str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The constrained model of a folder or hub name that holds a plan.

    A hub name is read from the local cache where the hub cannot be reached.

    Args:
        source: what `save_pretrained` or `c2r apply` wrote, a plan-only folder, or the name under
            which either was pushed.
        dtype: of the weights; None keeps that of the checkpoint.
        kwargs: passed on to `AutoModelForCausalLM.from_pretrained`; `revision` is that of `source`.

    Raises:
        InputError: nothing there that can be loaded, or it has no plan.
        ModelError, ArtifactError, PlanMismatchError: as `load_model`.
    """
    found = find_source(source, **kwargs)
    if found.plan is None:
        if not is_hub_name(source) and not (Path(source) / "config.json").is_file():
            raise InputError(f"{source} is no model folder (no config.json); check the path")
        raise InputError(
            f"{source} has no {PLAN_FILE}; make a constrained model with "
            f"`c2r apply {source} --plan PLAN --out FOLDER`"
        )
    return _load(found, dtype)


def load_tokenizer(source: str | Path | Source, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of what `load_model` loads. Raises `InputError` if it has none."""
    found = find_source(source, **kwargs)
    options = {"trust_remote_code": False, **found.options}
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.location, **options)
        if tokenizer.vocab_size < 2:  # what transformers makes for some families without files
            raise ValueError("it has no words")
        return tokenizer
    except (OSError, *_CONFIG_ERRORS) as error:
        raise InputError(
            f"cannot load the tokenizer of {found.location}: {_first_line(error)}; put the "
            "tokenizer's files beside the model"
        ) from error


def _first_line(error: BaseException) -> str:
    return one_line(error).rstrip(".") or type(error).__name__
