"""The MoE layers of a model from its configuration alone: no weights are loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM

from c2r.adapters.expert_groups import num_expert_groups
from c2r.adapters.huggingface.models import model_type
from c2r.adapters.huggingface.routers.registry import STATIC_ROUTERS
from c2r.adapters.huggingface.sources import find_source
from c2r.adapters.layers import ModelLayers
from c2r.errors import InputError, ModelError, one_line

_ROUTERS = ("gate", "router")
_SELECTING_BLOCKS = ("DbrxFFN",)
"""Classes of blocks that select for their experts themselves, where others have a router."""


def read_model_layers(source: str | Path) -> ModelLayers:
    """The MoE layers of a model folder or hub name.

    Raises:
        InputError: there is no configuration.
        ModelError: transformers does not know the model, it has no routers, or its layers have
            different numbers of experts.
    """
    return model_layers(read_skeleton(source))


def read_skeleton(source: str | Path) -> Any:
    """The model of a folder or hub name without weights. Raises as `read_model_layers`."""
    found = find_source(source)
    try:
        options = {"trust_remote_code": False, **found.options}
        config = AutoConfig.from_pretrained(found.location, **options)
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
        StrictDataclassError,
    ) as error:  # fmt: skip
        reason = one_line(error)
        raise InputError(f"cannot read the configuration of {source}: {reason}") from error
    auto = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False)


def model_layers(model: nn.Module) -> ModelLayers:
    """The MoE layers of a model, on any device. Raises `ModelError` as `read_model_layers`."""
    routers = dict(_routers(model))
    experts = {_num_experts(module) for _, module in routers.values()}
    if len(experts) != 1:
        raise ModelError(
            f"{model_type(model)} has no routers that c2r knows by name"
            if not experts
            else f"the layers of {model_type(model)} have {sorted(experts)} experts; traces of "
            "engines are read for one number only"
        )
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    last = max(routers)
    return ModelLayers(
        num_experts=experts.pop(),
        routers={number: name for number, (name, _) in routers.items()},
        num_layers=max(int(getattr(text, "num_hidden_layers", 0)), last + 1),
        num_groups=1 if config is None else num_expert_groups(config.to_dict()),
    )


def _routers(model: nn.Module) -> Iterator[tuple[int, tuple[str, nn.Module]]]:
    for name, module in model.named_modules():
        if "attention" in name or type(module).__name__ in STATIC_ROUTERS:
            continue  # JetMoE's attention has experts of its own
        is_router = name.rpartition(".")[2] in _ROUTERS and _has_experts(model, name)
        if is_router or type(module).__name__ in _SELECTING_BLOCKS:
            number = next(int(part) for part in name.split(".") if part.isdigit())
            yield number, (name, module)


def _has_experts(model: nn.Module, router: str) -> bool:
    """Whether the block around a router has experts, and is none that selects itself."""
    block = model.get_submodule(router.rpartition(".")[0])
    if type(block).__name__ in _SELECTING_BLOCKS:
        return False
    return any(name in ("experts", "input_linear") for name, _ in block.named_children())


def _num_experts(router: nn.Module) -> int:
    """Rows of the last matrix of a router, which gives its scores."""
    own = router.get_submodule("router") if type(router).__name__ in _SELECTING_BLOCKS else router
    shapes = [parameter.shape for parameter in own.parameters() if parameter.ndim == 2]
    return [int(rows) for rows, _ in shapes if rows > 1][-1]  # Ernie's bias is a row
