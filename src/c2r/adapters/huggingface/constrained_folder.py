"""A model folder with a plan, made from another folder without loading its model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from c2r.adapters.checkpoints.rewrite import UNCHANGED, rewritten_folder, write_config
from c2r.adapters.checkpoints.shards import open_checkpoint, read_json
from c2r.adapters.huggingface.card import CARD_FILE, model_card
from c2r.adapters.huggingface.hollow import hollow_model
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.model_identity import fingerprint
from c2r.adapters.huggingface.sources import Source, find_source, hub_options, is_hub_name
from c2r.adapters.huggingface.taps.install import apply
from c2r.artifacts import write_text
from c2r.errors import InputError, one_line
from c2r.plans import Plan
from c2r.plans.model_folder import save_plan
from c2r.results import Measurement

_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt")


def constrain_folder(
    source: str | Path,
    plan: Plan,
    folder: str | Path,
    strict: bool = True,
    measurement: Measurement | None = None,
    advance: Callable[[int, int], None] = lambda num_bytes, total: None,
    **options: Any,
) -> None:
    """Writes a model's own files to a new folder, and its plan and a model card beside them.

    The folder is read as what `save_pretrained` writes. The weights are copied byte by byte, shard
    by shard: the memory is that of the routers and of one matrix, for a model of any size. The
    folder appears whole or not at all; after an interruption the same call resumes.

    Args:
        source: a model folder with safetensors weights, a plan-only folder, or the name of either
            on the Hugging Face hub.
        plan: made from a profile of this model.
        folder: must not exist, or be empty.
        strict: also require that the router weights are those that were profiled.
        measurement: of the plan, for the card.
        advance: called with the number of bytes of each shard written, and of all.
        options: `revision` and others that say which files of the hub are meant, and
            `trust_remote_code`.

    Raises:
        InputError: nothing there that can be read, the folder is not empty, or the disk is full.
        ModelError, PlanError: the model is not supported, or cannot run under the plan.
        PlanMismatchError: plan or measurement are of another model or plan.
    """
    found = find_source(source, **options)
    origin = local_folder(found)
    trust = {"trust_remote_code": bool(options.get("trust_remote_code", False))}
    model = hollow_model(origin, **trust)
    apply(model, plan, strict)
    stamp = {"model_fingerprint": fingerprint(model, find_sites(model))}
    plan = replace(plan, provenance={**plan.provenance, **stamp})
    card = model_card(plan, found.location, measurement)
    checkpoint, task = open_checkpoint(origin), f"apply {plan.fingerprint}".encode()

    def written(num_bytes: int) -> None:
        advance(num_bytes, checkpoint.num_bytes)

    with rewritten_folder(checkpoint, UNCHANGED, Path(folder), task, written) as work:
        save_plan(plan, work)
        write_text(work / CARD_FILE, card)
        write_config(work, read_json(origin / "config.json"), plan)


def local_folder(found: Source) -> Path:
    """Where the files of a model are; those of the hub are brought to its cache.

    Raises `InputError` where the hub does not have them.
    """
    if not is_hub_name(found.location):
        return Path(found.location)
    try:
        options = hub_options(found.options)
        return Path(snapshot_download(found.location, allow_patterns=list(_FILES), **options))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot load a model from {found.location}: {one_line(error).rstrip('.')}; give a "
            "model folder, or a hub name while online"
        ) from error
