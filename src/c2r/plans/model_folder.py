"""Where a folder keeps its plan, and whether what stands beside it names the same one.

A model folder has weights, and a config.json that names the plan. A plan-only folder has no model:
it names the one that the plan is for, as folders of adapters do. The files stand in a folder of
their own: serving engines read every `*.safetensors` at the top of a model folder as weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from c2r.artifacts import read_json, write_text
from c2r.errors import ArtifactError, InputError, PlanMismatchError
from c2r.plans.plan import Plan

OWN_FOLDER = "c2r"
PLAN_FILE = f"{OWN_FOLDER}/plan.safetensors"
BASE_FILE = f"{OWN_FOLDER}/base_model.json"
PERMUTATION_FILE = f"{OWN_FOLDER}/permutation.safetensors"
PERMUTED_FROM = "permuted_from"
"""In the provenance of a renumbered plan, the fingerprint of the model before."""
# Earlier versions wrote both at the top.
_OLD_PLAN_FILE = "c2r_plan.safetensors"
_OLD_PERMUTATION_FILE = "c2r_permutation.safetensors"
PLAN_FILES = (PLAN_FILE, _OLD_PLAN_FILE)
OWN_ENTRIES = (OWN_FOLDER, _OLD_PLAN_FILE, _OLD_PERMUTATION_FILE)
"""What is ours at the top of a model folder, written by this version or an earlier one."""


def plan_path(folder: Path) -> Path | None:
    """The plan in a model folder; None where it has none."""
    return _first_file(*(folder / name for name in PLAN_FILES))


def permutation_path(folder: Path) -> Path | None:
    """What renumbered the experts of a model folder; None where nothing did."""
    return _first_file(folder / PERMUTATION_FILE, folder / _OLD_PERMUTATION_FILE)


def is_renumbered(folder: Path) -> bool:
    """Whether `c2r permute` wrote a model folder."""
    return permutation_path(folder) is not None


def check_numbering(plan: Plan, folder: Path) -> None:
    """Raises `PlanMismatchError` where a folder numbers its experts in another way than the plan.

    A plan for the model before `c2r permute` renumbered it places other experts in the folder that
    it wrote, and the other way round.
    """
    path = plan_path(folder)
    own = None if path is None else Plan.load(path)
    if own is not None and own.fingerprint == plan.fingerprint:
        return
    if not is_renumbered(folder):
        if PERMUTED_FROM in plan.provenance:
            raise PlanMismatchError(
                f"plan {plan.fingerprint} numbers the experts as `c2r permute` did, and {folder} "
                "was not renumbered by it; give the folder that it wrote"
            )
    elif own is None or _weights(plan) is None or _weights(plan) != _weights(own):
        raise PlanMismatchError(
            f"{folder} was renumbered by `c2r permute`, and plan {plan.fingerprint} numbers the "
            "experts otherwise; give the folder as it was, or start the engine with this one "
            "without a file, for its experts are placed in order"
        )


def _weights(plan: Plan) -> str | None:
    """The digest of the router weights that a plan was made for, where it tells them."""
    known = plan.provenance.get("model_fingerprint")
    return known.get("weights") if isinstance(known, Mapping) else None


def _first_file(*places: Path) -> Path | None:
    return next((place for place in places if place.is_file()), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """The model of a plan-only folder: a hub name or folder, and a branch, tag or commit."""

    name: str
    revision: str | None = None


def read_base(folder: Path) -> BaseModel | None:
    """The model that a plan-only folder names; None for a folder that holds a model.

    Raises:
        ArtifactError: the file that names it is damaged.
    """
    path = folder / BASE_FILE
    if (folder / "config.json").is_file() or not path.is_file():
        return None
    document = read_json(path)
    entries = document if isinstance(document, dict) else {}
    name, revision = entries.get("base_model_name_or_path"), entries.get("revision")
    if not isinstance(name, str) or not isinstance(revision, str | None):
        raise ArtifactError(f"{path} names no base_model_name_or_path; write the folder again")
    return BaseModel(name=name, revision=revision)


def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder, checked against what names it; None where nothing does.

    Raises:
        InputError: config.json names a plan that the folder does not hold.
        ArtifactError: the plan cannot be read.
        PlanMismatchError: config.json names another plan.
    """
    path, (namer, named) = plan_path(folder), _named_plan(folder)
    if path is None:
        if named is not None:
            raise InputError(
                f"{folder}/{namer} names plan {named}, but there is no {PLAN_FILE}; put it "
                "back, or write the folder again with `c2r apply`"
            )
        return None
    plan = Plan.load(path)
    if named != plan.fingerprint:
        raise PlanMismatchError(
            f"{folder}/{namer} names plan {named}, but {path.relative_to(folder)} is "
            f"{plan.fingerprint}; write the folder again with `c2r apply`"
        )
    return plan


def save_plan(plan: Plan, folder: Path, base: BaseModel | None = None) -> None:
    """Writes the plan of a folder, and the model that it is for where the folder holds none.

    Raises `InputError` if it cannot be written.
    """
    (folder / OWN_FOLDER).mkdir(exist_ok=True)
    plan.save(folder / PLAN_FILE)
    if base is not None:
        document = {
            "base_model_name_or_path": base.name,
            "revision": base.revision,
            "plan_fingerprint": plan.fingerprint,
        }
        write_text(folder / BASE_FILE, json.dumps(document, indent=2) + "\n")


def names_plan(folder: Path) -> bool:
    """Whether a folder says that it has a plan."""
    return _named_plan(folder)[1] is not None


def _named_plan(folder: Path) -> tuple[str, str | None]:
    """The file that is to name the plan, and the fingerprint in it; None where it names none."""
    namer = "config.json" if (folder / "config.json").is_file() else BASE_FILE
    try:
        document = json.loads((folder / namer).read_text(encoding="utf-8-sig"))
        return namer, str((document if namer == BASE_FILE else document["c2r"])["plan_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return namer, None
