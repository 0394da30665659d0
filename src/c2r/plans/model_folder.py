"""Where a model folder keeps its plan, and whether config.json names the same one.

The files stand in a folder of their own: serving engines read every `*.safetensors` at the top of
a model folder as weights.
"""

import json
from pathlib import Path

from c2r.errors import InputError, PlanMismatchError
from c2r.plans.plan import Plan

OWN_FOLDER = "c2r"
PLAN_FILE = f"{OWN_FOLDER}/plan.safetensors"
PERMUTATION_FILE = f"{OWN_FOLDER}/permutation.safetensors"
# Earlier versions wrote both at the top.
_OLD_PLAN_FILE = "c2r_plan.safetensors"
_OLD_PERMUTATION_FILE = "c2r_permutation.safetensors"
OWN_ENTRIES = (OWN_FOLDER, _OLD_PLAN_FILE, _OLD_PERMUTATION_FILE)
"""What is ours at the top of a model folder, written by this version or an earlier one."""


def plan_path(folder: Path) -> Path | None:
    """The plan in a model folder; None where it has none."""
    return _first_file(folder / PLAN_FILE, folder / _OLD_PLAN_FILE)


def permutation_path(folder: Path) -> Path | None:
    """What renumbered the experts of a model folder; None where nothing did."""
    return _first_file(folder / PERMUTATION_FILE, folder / _OLD_PERMUTATION_FILE)


def _first_file(*places: Path) -> Path | None:
    return next((place for place in places if place.is_file()), None)


def read_plan(folder: Path) -> Plan | None:
    """The plan of a model folder, checked against its config.json; None where it names none.

    Raises:
        InputError: config.json names a plan that the folder does not hold.
        ArtifactError: the plan cannot be read.
        PlanMismatchError: config.json names another plan.
    """
    path, named = plan_path(folder), _named_plan(folder)
    if path is None:
        if named is not None:
            raise InputError(
                f"{folder}/config.json names plan {named}, but there is no {PLAN_FILE}; put it "
                "back, or write the folder again with `c2r apply`"
            )
        return None
    plan = Plan.load(path)
    if named != plan.fingerprint:
        raise PlanMismatchError(
            f"{folder}/config.json names plan {named}, but {path.relative_to(folder)} is "
            f"{plan.fingerprint}; write the folder again with `c2r apply`"
        )
    return plan


def save_plan(plan: Plan, folder: Path) -> None:
    """Writes the plan of a model folder. Raises `InputError` if it cannot be written."""
    path = folder / PLAN_FILE
    path.parent.mkdir(exist_ok=True)
    plan.save(path)


def _named_plan(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
        return str(config["c2r"]["plan_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
