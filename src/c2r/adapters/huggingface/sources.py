"""What a user names as a model: a folder, a name on the hub, or a plan that names its model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from c2r.assets import tiny_folder
from c2r.errors import InputError, one_line
from c2r.plans import Plan
from c2r.plans.model_folder import (
    BASE_FILE,
    PLAN_FILE,
    PLAN_FILES,
    names_plan,
    read_base,
    read_plan,
)

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """Where the weights of a model are, and the plan that it must run under.

    Attributes:
        location: a model folder, or a name on the hub.
        options: for transformers' `from_pretrained`: those given, with the revision of the model.
        plan: None where the model runs as it is.
    """

    location: str
    options: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None


def is_hub_name(source: str | Path) -> bool:
    """Whether `source` has the form owner/name and is no folder here."""
    return _HUB_NAME.fullmatch(str(source)) is not None and not Path(source).is_dir()


def is_shared(base: str) -> bool:
    """Whether the model that a plan-only folder names can be found by others."""
    return is_hub_name(base) or base == "tiny"


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s options that say which files of the hub are meant."""
    return {name: value for name, value in options.items() if name in _HUB_OPTIONS}


def find_source(source: "str | Path | Source", **options: Any) -> Source:
    """The model behind a name, and its plan; of a hub name only the small files are fetched.

    Args:
        source: a model folder, a plan-only folder, or the name of such a repository on the hub; one
            that was found already is given back, with these options beside its own.
        options: of transformers' `from_pretrained`; `revision` and others tell which files of the
            hub are meant.

    Raises:
        InputError: the hub does not have it, or a plan that is named is not there.
        ArtifactError, PlanMismatchError: the plan cannot be read, or is not the one that is named.
    """
    if isinstance(source, Source):
        return replace(source, options={**options, **source.options})
    folder = Path(source)
    if is_hub_name(source):
        folder = _fetch(str(source), hub_options(options))
    _check_holds_no_adapters(folder)
    base = read_base(folder)
    if base is None:
        return Source(location=str(source), options=options, plan=read_plan(folder))
    if is_hub_name(source) and not is_shared(base.name):
        raise InputError(
            f"{source} is a plan for {one_line(base.name)}, a folder of the machine that wrote it; "
            "its author should write it again with the model's hub name"
        )
    location = str(tiny_folder()) if base.name == "tiny" else base.name
    return Source(
        location=location,
        options={**options, "revision": base.revision} if is_hub_name(location) else options,
        plan=read_plan(folder),
    )


def _check_holds_no_adapters(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds adapters and no model; load the model, then the adapters with "
            f"PeftModel.from_pretrained(model, {str(folder)!r}), and apply the plan in "
            f"{folder / PLAN_FILE}"
        )


def _fetch(name: str, options: Mapping[str, Any]) -> Path:
    """The folder of the hub's cache that holds what a repository says of a plan."""
    try:
        try:
            folder = Path(hf_hub_download(name, "config.json", **options)).parent
        except EntryNotFoundError as error:
            folder = _fetch_base(name, options, error)
        for plan_file in PLAN_FILES if names_plan(folder) else ():
            try:
                hf_hub_download(name, plan_file, **options)
                break
            except EntryNotFoundError:
                continue  # `read_plan` tells that it is missing
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot load a model from {name}: {one_line(error).rstrip('.')}; give a model folder, "
            "or a hub name while online"
        ) from error
    return folder


def _fetch_base(name: str, options: Mapping[str, Any], no_config: Exception) -> Path:
    try:
        return Path(hf_hub_download(name, BASE_FILE, **options)).parents[1]
    except EntryNotFoundError:
        raise no_config from None
