"""Batches as people have them, made what a model's forward takes: checked, and none of it lost."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from c2r.adapters.huggingface.models import input_device, model_type, unwrapped
from c2r.errors import InputError

Batch = dict[str, Any]
"""`input_ids` and whatever else a model takes with them, tensors `[batch, tokens]` as a rule."""

_IDS = ("input_ids", "attention_mask", "labels")  # of one shape
_OURS = frozenset(
    {"use_cache", "past_key_values", "return_dict", "logits_to_keep", "inputs_embeds"}
)
_SHOW = "give [batch, tokens], such as tokenizer(text, return_tensors='pt')"


def as_batches(batches: Any) -> Iterable[Any]:
    """What was given for a list of batches, where it may be one batch alone.

    Raises:
        InputError: it is text, or nothing that has batches in it.
    """
    if isinstance(batches, str):
        raise InputError(f"the batches are text, not token ids; {_SHOW}")
    if isinstance(batches, Mapping) or _is_row(batches):
        return [batches]
    if isinstance(batches, Tensor | np.ndarray) and batches.ndim <= 2:
        return [batches]
    if not isinstance(batches, Iterable):
        raise InputError(f"the batches are a {type(batches).__name__}; give a list of batches")
    return batches


def _is_row(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], int)


def read_batch(model: nn.Module, batch: Any) -> Batch:
    """A batch whose `input_ids` are `[batch, tokens]` int64 of the model's vocabulary.

    Lists and arrays become tensors, one row becomes a batch of one, rows of several lengths are
    padded on the right, which the mask then tells.

    Args:
        model: the model that is to run on it.
        batch: `input_ids` and what the model takes beside them, by name; or ids alone.

    Raises:
        InputError: it cannot be read; the error says what it is, and its shape.
    """
    entries = {"input_ids": batch}
    if isinstance(batch, Mapping):
        entries = {name: value for name, value in batch.items() if value is not None}
    if "input_ids" not in entries:
        raise InputError(f"a batch has {sorted(map(str, entries))}; it must have input_ids")
    ids = entries["input_ids"]
    lengths = _ragged_lengths(ids)
    found = {name: _tensor(name, value) for name, value in entries.items()}
    if lengths is not None and "attention_mask" not in found:
        places = torch.arange(max(lengths))
        found["attention_mask"] = (places < torch.tensor(lengths)[:, None]).long()
    if not isinstance(found["input_ids"], Tensor):
        raise InputError(f"input_ids are a {type(ids).__name__}; {_SHOW}")
    if found["input_ids"].ndim == 1:
        width = len(found["input_ids"])
        found = {name: _with_batch(value, width) for name, value in found.items()}
    _check_shapes(found)
    check_ids(model, found["input_ids"])
    types = found.get("token_type_ids")
    if isinstance(types, Tensor) and not types.any() and "token_type_ids" not in _names(model):
        del found["token_type_ids"]  # some tokenizers give them for any model; 0 says nothing
    found["input_ids"] = found["input_ids"].long()
    return found


def _ragged_lengths(value: Any) -> list[int] | None:
    """The lengths of rows that are not all of one length; None for all else."""
    if isinstance(value, Tensor | np.ndarray | str) or not isinstance(value, Sequence):
        return None
    if not all(isinstance(row, Sequence | Tensor | np.ndarray) for row in value):
        return None
    lengths = [len(row) for row in value]
    return lengths if len(set(lengths)) > 1 else None


def _tensor(name: str, value: Any) -> Any:
    """An entry as a tensor where it is numbers in a list or an array; any other as it is."""
    if isinstance(value, str) or (isinstance(value, list | tuple) and _has_text(value)):
        if name == "input_ids":
            raise InputError(f"a batch is text, not token ids; {_SHOW}")
        raise InputError(f"{name} of a batch is text, which no model takes; leave it out")
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    if not isinstance(value, list | tuple):
        return value
    try:
        if _ragged_lengths(value) is None and not any(isinstance(row, Tensor) for row in value):
            return torch.tensor(np.asarray(value))
        return pad_sequence([torch.as_tensor(row) for row in value], batch_first=True)
    except (ValueError, TypeError, RuntimeError):
        raise InputError(f"{name} of a batch is no array of numbers; {_SHOW}") from None


def _has_text(value: Sequence[Any]) -> bool:
    first = value[0] if value else None
    return isinstance(first, str) or (isinstance(first, list | tuple) and _has_text(first))


def _with_batch(value: Any, width: int) -> Any:
    is_row = isinstance(value, Tensor) and value.ndim == 1 and len(value) == width
    return value[None] if is_row else value


def _check_shapes(found: Batch) -> None:
    ids = found["input_ids"]
    if ids.ndim != 2 or not ids.numel():
        raise InputError(f"input_ids have shape {list(ids.shape)}; {_SHOW}, with a token at least")
    for name in _IDS:
        value = found.get(name)
        if value is not None and (not isinstance(value, Tensor) or value.shape != ids.shape):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{name} is of shape {shape}, input_ids of {list(ids.shape)}; give both as "
                "[batch, tokens]"
            )
    positions = found.get("position_ids")
    if isinstance(positions, Tensor) and positions.shape[-1:] != ids.shape[-1:]:
        raise InputError(
            f"position_ids have shape {list(positions.shape)}, input_ids {list(ids.shape)}; give "
            "a position for each token"
        )


def check_ids(model: nn.Module, ids: Tensor) -> None:
    """Raises `InputError` for ids that are no whole numbers, or beyond the model's embedding."""
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise InputError(f"input_ids are {ids.dtype}, not whole numbers; {_SHOW}")
    rows = embedding_rows(model)
    if rows is None:
        return
    special = _special_ids(model)
    least, largest = int(ids.min()), int(ids.max())
    if least >= 0 and (largest < rows or not _beyond(ids, rows, special).any()):
        return
    worst = least if least < 0 else int(ids[_beyond(ids, rows, special)].max())
    raise InputError(
        f"token id {worst} is beyond the embedding of {model_type(model)}, which has {rows} rows "
        f"(0 to {rows - 1}); give the model's own tokenizer"
    )


def _beyond(ids: Tensor, rows: int, special: Sequence[int]) -> Tensor:
    return (ids >= rows) & ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype).to(ids.device))


def embedding_rows(model: nn.Module) -> int | None:
    """How many token ids a model has embeddings for; None where it does not tell."""
    embeddings = getattr(unwrapped(model), "get_input_embeddings", lambda: None)()
    weight = getattr(embeddings, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _special_ids(model: nn.Module) -> list[int]:
    """Ids that a multi-modal model puts other senses in place of, which need no embedding."""
    config = getattr(unwrapped(model), "config", None)
    return [
        value
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    ]


def forward_inputs(
    model: nn.Module, parts: Sequence[nn.Module], batch: Batch
) -> tuple[nn.Module, dict[str, Any]]:
    """The first of `parts` whose forward takes all of a batch, and what it is given.

    Args:
        model: the model, whatever is around it; tensors go where it takes its token ids.
        parts: the model, or its part without the head, in the order of preference.
        batch: what `read_batch` gave. Labels are no input.

    Raises:
        InputError: none takes all of it.
    """
    names = [name for name in batch if name != "labels"]
    refused: list[str] = []
    for part in parts:
        taken = _taken(part)
        refused = [name for name in names if name in _OURS or not (taken is None or name in taken)]
        if not refused:
            device = input_device(model)
            return part, {name: _moved(batch[name], device) for name in names}
    raise InputError(
        f"a batch holds {', '.join(sorted(refused))}, which the forward of {model_type(model)} "
        "does not take from it; leave it out"
    )


def _names(model: nn.Module) -> frozenset[str]:
    return _taken(unwrapped(model)) or frozenset()


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _taken(module: nn.Module) -> frozenset[str] | None:
    """The names of all that a module's forward takes; None where it takes any."""
    parameters = inspect.signature(module.forward).parameters
    names = set(parameters)
    for parameter in parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            typed = get_args(parameter.annotation)  # of Unpack[a TypedDict]
            if not typed and not isinstance(module, PreTrainedModel):
                return None
            names |= set((typed or (TransformersKwargs,))[0].__annotations__)
    return frozenset(names)
