"""The sizes of a model's layers, counted on a copy of the model without weights."""

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from c2r.adapters.huggingface.models import model_type
from c2r.adapters.huggingface.routers.skeleton import model_layers, read_skeleton
from c2r.errors import ModelError
from c2r.prediction.needs import ModelShape
from c2r.prediction.workload import ModelSizes

_ROUTED = re.compile(r"(.*)\.(?:experts|input_linear|output_linear)\b")
_SHARED = re.compile(r"\.shared_(expert|experts|mlp)\.")
_NOT_ROUTED = re.compile(r"\.shared_|attention|attn")
_NUMBER = re.compile(r"\.\d+\b")
_FUSED = 3  # dimensions of the weights of all experts in one
_OTHER_SENSES = re.compile(r"visual|vision|audio")


def sizes_of(model: nn.Module, num_experts: int) -> ModelSizes:
    """The sizes of a transformers model of `num_experts`, whole though it be packed or spread.

    Raises:
        ModelError: the model is not of transformers, or has no experts that are known by name.
    """
    inner = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if inner is None:
        raise ModelError(f"{type(model).__name__} is no model of transformers; give its sizes")
    with torch.device("meta"):
        return count_sizes(type(inner)(copy.deepcopy(inner.config)), num_experts)


def read_sizes(source: str | Path) -> ModelSizes:
    """The sizes of a model folder or hub name, from its configuration.

    Raises:
        InputError: it cannot be read.
        ModelError: it has no experts.
    """
    model = read_skeleton(source)
    return count_sizes(model, model_layers(model).num_experts)


def read_shape(source: str | Path) -> ModelShape:
    """Sizes, experts and vocabulary of a model folder or hub name, from its configuration.

    Raises:
        InputError, ModelError: as `read_sizes`.
    """
    model = read_skeleton(source)
    text: Any = model.config.get_text_config()
    num_experts = model_layers(model).num_experts
    return ModelShape(
        sizes=count_sizes(model, num_experts),
        num_experts=num_experts,
        top_k=int(text.num_experts_per_tok),
        vocabulary=int(text.vocab_size),
        embedding_parameters=sum(value.numel() for value in _looked_up(model)),
    )


def count_sizes(model: PreTrainedModel, num_experts: int) -> ModelSizes:
    """The sizes of an unpacked model, on any device; of `num_experts` in every MoE layer.

    Of embeddings only the head counts. The biases of routed experts count nowhere.

    Raises:
        ModelError: no experts are known by name.
    """
    text: Any = model.config.get_text_config()
    looked_up = _looked_up(model)
    own = {
        name: value
        for name, value in model.named_parameters()
        if not _OTHER_SENSES.search(name) and value not in looked_up
    }
    routed = {name: value for name, value in own.items() if _is_routed(name)}
    blocks = {_block(name) for name in routed}
    if not blocks:
        raise ModelError(f"{model_type(model)} has no experts that are known by name")
    matrices: dict[str, float] = {}  # parameters of one expert, mean over layers
    for name, value in routed.items():
        if value.ndim > 1 and not name.endswith("bias"):
            count = value.shape[0] if value.ndim == _FUSED else num_experts
            matrix = _NUMBER.sub("", name.removeprefix(_block(name)))
            share = value.numel() / count / len(blocks)
            matrices[matrix] = matrices.get(matrix, 0.0) + share
    each = sum(matrices.values())
    num_matrices = round(each / min(matrices.values()))
    width = num_matrices * int(text.hidden_size)
    shared = sum(value.numel() for name, value in own.items() if _SHARED.search(name))
    shared_size = shared // (len(blocks) * width)
    rest = sum(value.numel() for name, value in own.items() if name not in routed)
    return ModelSizes(
        hidden_size=int(text.hidden_size),
        expert_size=round(each / width),
        shared_expert_size=shared_size,
        num_layers=int(text.num_hidden_layers),
        num_moe_layers=len(blocks),
        dense_parameters=rest - shared_size * len(blocks) * width,
        num_matrices=num_matrices,
    )


def _is_routed(name: str) -> bool:
    return bool(_ROUTED.match(name)) and not _NOT_ROUTED.search(name)


def _block(name: str) -> str:
    """The path of a routed weight as far as its layer's experts."""
    found = _ROUTED.match(name)
    assert found is not None, "the weight is of a routed expert"
    return found.group(1)


def _looked_up(model: nn.Module) -> set[Tensor]:
    """Weights of embeddings that nothing else has: a token meets one row of them."""
    used: set[Tensor] = set()
    tables: set[Tensor] = set()
    for module in model.modules():
        (tables if isinstance(module, nn.Embedding) else used).update(
            module.parameters(recurse=False)
        )
    return tables - used
