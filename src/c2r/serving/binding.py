"""Which plan an engine's model runs under, and the layer of it that a router belongs to."""

import os
from collections.abc import Mapping
from pathlib import Path

from c2r.adapters.layers import split_layer
from c2r.errors import InputError, PlanMismatchError
from c2r.plans import LayerPlan, Plan
from c2r.plans.model_folder import PLAN_FILE, read_plan

VARIABLE = "C2R_PLAN"
"""The environment variable that names a plan file for a model whose folder holds none."""


def plan_of(model: str, is_named: bool) -> Plan | None:
    """The plan that `model` must run under; None where it is to run as it is.

    Args:
        model: a model folder, or a name on the Hugging Face hub.
        is_named: the model's config names a plan.

    Raises:
        InputError: the config names a plan that cannot be found, or the variable and the folder
            name different ones.
        ArtifactError, PlanMismatchError: as `read_plan`.
    """
    folder = Path(model)
    own = read_plan(folder) if folder.is_dir() else _cached_plan(model)
    asked = os.environ.get(VARIABLE)
    if asked:
        plan = Plan.load(asked)
        if own is not None and own.fingerprint != plan.fingerprint:
            raise InputError(
                f"{VARIABLE} is plan {plan.fingerprint}, but {model} holds plan {own.fingerprint}; "
                f"unset {VARIABLE}, or give the model without its plan"
            )
        return plan
    if own is None and is_named:
        raise InputError(
            f"the config of {model} names a plan, but {PLAN_FILE} cannot be found; load the model "
            f"from its folder, or name the plan's file in {VARIABLE}"
        )
    return own


def _cached_plan(model: str) -> Plan | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, PLAN_FILE)
    except HFValidationError:
        return None
    return Plan.load(found) if isinstance(found, str) else None


def layers_by_number(plan: Plan) -> Mapping[int, LayerPlan]:
    """The plan's layers by the number of their block in the model.

    Raises `PlanMismatchError` where the plan does not name its routers.
    """
    numbered = {layer_number(layer.name): layer for layer in plan.layers}
    if None in numbered or len(numbered) != plan.num_layers:
        raise PlanMismatchError(
            f"plan {plan.fingerprint} does not say which layers its {plan.num_layers} routers are "
            "in; plan from a profile of the model itself"
        )
    return {number: layer for number, layer in numbered.items() if number is not None}


def layer_number(path: str) -> int | None:
    """The number in a module path: 3 of `model.layers.3.mlp.experts`; None without one."""
    split = split_layer(path)
    return None if split is None else int(split[0].rpartition(".")[2])
