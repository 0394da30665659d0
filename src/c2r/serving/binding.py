"""Which plan an engine's model runs under, and the layer of it that a router belongs to."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from c2r.adapters.digests import structure_digest, weights_digest
from c2r.adapters.layers import split_layer
from c2r.errors import InputError, ModelError, PlanMismatchError
from c2r.plans import LayerPlan, Plan
from c2r.plans.model_folder import PLAN_FILE, read_plan

VARIABLE = "C2R_PLAN"
"""The environment variable that names a plan file for a model whose folder holds none."""

_SAME_NAMES = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe",
        "gpt_oss",
        "granitemoe",
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
    }
)
"""Families whose routers' tensors have the same names in engines as in transformers."""


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


def check_family(plan: Plan, model_types: Collection[str]) -> None:
    """Raises `PlanMismatchError` where the plan was made for a model of another family.

    `model_types` are what the served model's config calls itself, and its text model. A plan whose
    profile did not see the model's weights (an imported trace) does not tell its family.
    """
    known = plan.provenance.get("model_fingerprint")
    if not isinstance(known, Mapping) or "structure" not in known:
        return
    shapes = [(layer.name, layer.num_experts, layer.top_k) for layer in plan.layers]
    found = {structure_digest(family, shapes) for family in model_types}
    if known["structure"] not in found:
        raise PlanMismatchError(
            f"plan {plan.fingerprint} was made for a model of structure {known['structure']}, "
            f"which {' or '.join(sorted(set(model_types)))} is not; give a plan made for this model"
        )


def router_tensors(model: nn.Module, part: str) -> Mapping[str, Tensor]:
    """The tensors of the router beside a part of an MoE block, by their names in it.

    `part` is the path of the block's experts or top-k; empty where no router is found there.
    """
    block = model.get_submodule(part.rpartition(".")[0])
    routers = (getattr(block, name, None) for name in ("gate", "router"))
    router = next((found for found in routers if isinstance(found, nn.Module)), None)
    return {} if router is None else router.state_dict()


def check_weights(
    plan: Plan, model_types: Collection[str], routers: Mapping[int, Mapping[str, Tensor]]
) -> str | None:
    """Why a plan's router weights could not be compared with a loaded model's; None if they were.

    Args:
        plan: of the model.
        model_types: what the model's config calls itself, and its text model.
        routers: `router_tensors` by the number of their layer, as loaded.

    Raises:
        PlanMismatchError: the weights are not those that the plan was made for.
    """
    fingerprint = plan.provenance.get("model_fingerprint")
    known = fingerprint.get("weights") if isinstance(fingerprint, Mapping) else None
    if known is None:
        return "the plan does not tell them (it is of an imported trace)"
    if not _SAME_NAMES.intersection(model_types):
        return f"how {' or '.join(sorted(set(model_types)))} names them is not known"
    planned = layers_by_number(plan)
    missing = [number for number in planned if not routers.get(number)]
    if missing:
        return f"this process does not hold the router of layer {missing[0]}"
    found = weights_digest((layer.name, routers[number]) for number, layer in planned.items())
    if found == known:
        return None
    dtypes = {tensor.dtype for tensors in routers.values() for tensor in tensors.values()}
    if not dtypes <= {torch.float32, torch.bfloat16}:
        return f"they were loaded as {' and '.join(sorted(map(str, dtypes)))}"
    raise PlanMismatchError(
        f"plan {plan.fingerprint} was made for router weights {known}, the model has {found}; give "
        "a plan made for this model, or, if it was fine-tuned since, a folder that "
        "`c2r apply --other-weights` writes"
    )


def check_bound(plan: Plan, bound: Collection[int], engine: str, within: range) -> None:
    """Raises `ModelError` unless an engine gave c2r the choice in every layer of the plan.

    Args:
        plan: of the model that was loaded.
        bound: numbers of the layers whose routers choose by the plan.
        engine: its name.
        within: numbers of the layers that this process holds (pipeline parallelism).
    """
    planned = [number for number in layers_by_number(plan) if number in within]
    missing = sorted(set(planned) - set(bound))
    if missing:
        raise ModelError(
            f"{engine} routes {len(missing)} of the {len(planned)} layers of plan "
            f"{plan.fingerprint} by itself (the first is layer {missing[0]}), where c2r cannot "
            "choose; serve the model without its plan"
        )
