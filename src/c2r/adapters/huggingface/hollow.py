"""A model that runs in little memory: its routers have their weights, all else has made-up ones.

Where a model routes, which router weights a plan is for, and whether a policy can be applied depend
on nothing else. So a folder is checked that is larger than the memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from c2r.adapters.checkpoints.shards import Checkpoint, open_checkpoint
from c2r.adapters.huggingface.folders import weightless
from c2r.adapters.huggingface.models import model_type
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.model_identity import fingerprint, router_tensors
from c2r.adapters.huggingface.routers.sites import RouterSite
from c2r.errors import InputError, ModelError

_SCALE = 0.02  # of weights, as transformers draws most of them


def hollow_model(folder: Path, **options: Any) -> PreTrainedModel:
    """The model of a folder, in evaluation mode; its outputs mean nothing, its routers are real.

    Memory: the routers, and while it runs a copy of one matrix at a time.

    Args:
        folder: with safetensors weights, of which only those of routers are read.
        options: `trust_remote_code`, as for `load_model`.

    Raises:
        InputError: no such folder, or its files are damaged.
        ModelError: not a Mixture-of-Experts model, or one that is not supported.
    """
    model = weightless(folder, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            made_up = nn.Parameter(_made_up(parameter, generator), requires_grad=False)
            module.register_parameter(name, made_up)
    # A loop over experts copies one at a time, where the other ways copy all of a layer.
    model.set_experts_implementation("eager")
    _read_routers(model, find_sites(model), open_checkpoint(folder))
    return model


def identity(folder: Path) -> dict[str, str] | None:
    """The `fingerprint` of the model in a folder; None where it cannot be built and run."""
    try:
        model = hollow_model(folder)
    except (InputError, ModelError):
        return None
    return fingerprint(model, find_sites(model))


def _made_up(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of a shape that share memory: `[i, j]` is `[i + 1, j - 1]`.

    No two rows are alike, so that tokens and experts differ, but n by m values take n + m.
    """
    number = max(sum(parameter.shape) - parameter.ndim + 1, 1)
    values = _SCALE * torch.randn(number, generator=generator)
    return values.to(parameter.dtype).as_strided(parameter.shape, (1,) * parameter.ndim)


def _read_routers(
    model: PreTrainedModel, sites: Sequence[RouterSite], checkpoint: Checkpoint
) -> None:
    stored, file_of = checkpoint.tensors, checkpoint.file_of
    for site in sites:
        found = {}
        for name, tensor in router_tensors(site).items():
            place = _stored_name(model, f"{site.path}.{name}", tensor, stored)
            if stored[place].shape != tuple(tensor.shape):
                raise InputError(
                    f"{checkpoint.folder} has {place} of shape {list(stored[place].shape)}, but "
                    f"the model's is {list(tensor.shape)}; download the model again"
                )
            with safe_open(file_of[place], "pt") as file:
                found[name] = file.get_tensor(place).to(tensor.dtype)
        site.module.load_state_dict(found, strict=False, assign=True)


def _stored_name(
    model: PreTrainedModel, name: str, tensor: Tensor, stored: Mapping[str, object]
) -> str:
    """What the files call a tensor of the model. Raises `ModelError` if they do not hold it."""
    if name in stored:
        return name
    names: list[str] = list(revert_weight_conversion(model, {name: tensor.to("meta")}))
    if len(names) == 1 and names[0] in stored:
        return names[0]
    raise ModelError(
        f"the files of this {model_type(model)} hold the router's {name} under no name that c2r "
        "knows; download the model again, or load it whole in Python and save it with "
        "c2r.save_pretrained"
    )
