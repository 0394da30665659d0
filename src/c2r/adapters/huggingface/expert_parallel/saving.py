"""Saves a model whose experts are spread over ranks: every rank writes what it holds.

The folder is the one that a single process would write, in transformers' own layout: experts with
names of their own, or stacked. transformers translates names and shapes from its modules to the
files; here it does so for one expert at a time.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from c2r.adapters.checkpoints.side_by_side import SideBySide
from c2r.adapters.huggingface.expert_parallel.spread import local_experts
from c2r.adapters.huggingface.expert_parallel.state import held_rows
from c2r.adapters.huggingface.folders import write_folder
from c2r.adapters.huggingface.models import model_type
from c2r.adapters.huggingface.parallel_models import mesh_of
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.model_identity import fingerprint
from c2r.artifacts import atomic_folder
from c2r.errors import InputError, ModelError
from c2r.parallel import Comm, Mesh, agree, do_together, is_sharded, own_part, whole

_WHAT = "the writing of the model"


def save_parallel(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes a constrained model whose experts are spread over ranks, and its plan.

    Every rank calls this, with the same folder on a disk that all of them see. Each writes its own
    experts and a share of all else, so that no rank ever holds more than it does; but of what FSDP2
    shards one parameter at a time. The folder is as
    `save_pretrained` writes it from one process, and appears whole or not at all.

    Args:
        model: spread by `parallelize` or `load_parallel`; a plan was applied.
        folder: must not exist, or be empty.
        tokenizer: saved too, if given.
        max_shard_size: of each file of weights, in bytes or as "5GB".

    Raises:
        PlanError: no plan is applied.
        ModelError: the files of this family keep no expert apart from the others.
        InputError: the model is not parallel; or the folder is not empty, or cannot be written by
            one of the ranks.
        CommunicationError: ranks name different folders, or one does not answer.
    """
    mesh, folder = mesh_of(model), Path(folder)
    agree({"the folder": str(folder), "the size of files": max_shard_size}, mesh.world)
    is_shared_out = any(map(is_sharded, model.parameters()))
    known = fingerprint(model, find_sites(model)) if is_shared_out else None  # asked by all ranks
    with _folder_of_all(folder, mesh.world) as temporary:
        stored = _Stored.of(model)
        with closing(SideBySide(temporary, stored.whole, max_shard_size)) as files:

            def begin() -> None:
                with _refusing(folder):
                    write_folder(model, temporary, tokenizer, {}, known=known)
                    files.create()

            do_together(begin, mesh.world, _WHAT, only_first=True)

            def write() -> None:
                with _refusing(folder):
                    _write_own(model, stored, mesh, files)

            do_together(write, mesh.world, _WHAT)


@contextmanager
def _folder_of_all(folder: Path, world: Comm) -> Iterator[Path]:
    """A temporary folder that all ranks may write to; the first makes it and renames it."""
    with ExitStack() as stack:

        def begin() -> str:
            return str(stack.enter_context(atomic_folder(folder)))

        yield Path(do_together(begin, world, _WHAT, only_first=True))
        do_together(stack.close, world, _WHAT, only_first=True)


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror or error}; nothing was left behind; make "
            "room, on a disk that all ranks see"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Stored:
    """How the files of a model hold it.

    Attributes:
        whole: every stored tensor by name, on the meta device.
        rest: what is not of experts, under the model's own names, in the order of the files.
        groups: the names in it that are translated together.
    """

    whole: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]
    groups: Sequence[Sequence[str]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Stored":
        with warnings.catch_warnings():
            # It asks for the storage of what FSDP2 shards by a name that torch will drop.
            warnings.simplefilter("ignore", UserWarning)
            state = remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
        ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        state = {name: tensor for name, tensor in state.items() if name not in ignored}
        whole = {name: _hollow(tensor) for name, tensor in state.items()}
        for name, module, experts in local_experts(model):
            for key, tensor in _parameters(name, module).items():
                del state[key]
                whole[key] = _of_experts(tensor, len(experts.homes.placement))
        groups: list[list[str]] = [list(state)]
        if any(map(is_sharded, state.values())) and _is_apart(model, state):
            groups = [[name] for name in state]
        return cls(whole=revert_weight_conversion(model, whole), rest=state, groups=groups)


def _hollow(tensor: Tensor) -> Tensor:
    """The same without values; of what FSDP2 shards, the whole."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _is_apart(model: PreTrainedModel, state: Mapping[str, Tensor]) -> bool:
    """Whether every tensor can be translated without the others."""
    hollow = {name: _hollow(tensor) for name, tensor in state.items()}
    apart: dict[str, Tensor] = {}
    for name, tensor in hollow.items():
        apart |= revert_weight_conversion(model, {name: tensor})
    shapes, expected = (
        {name: tensor.shape for name, tensor in each.items()}
        for each in (apart, revert_weight_conversion(model, hollow))
    )
    return shapes == expected


def _write_own(model: PreTrainedModel, stored: _Stored, mesh: Mesh, files: SideBySide) -> None:
    """Writes this rank's experts, which those of other groups share with it, and of all else."""
    _write_rest(model, stored, mesh.world, files)
    held = held_rows(model)
    for name, module, experts in local_experts(model):
        places = _places_of_experts(model, name, module, len(experts.homes.placement))
        parameters = _parameters(name, module)
        ids, num_own = held[next(iter(parameters.values()))]
        is_sharded_out = all(map(is_sharded, parameters.values()))  # else all groups have the same
        turns = slice(None) if is_sharded_out else slice(mesh.group, None, mesh.num_groups)
        for row in range(num_own)[turns]:
            one = {
                key: own_part(tensor.detach())[row : row + 1] for key, tensor in parameters.items()
            }
            for key, values in revert_weight_conversion(model, one).items():
                places[key].write(files, values, ids[row])
    files.flush()


def _write_rest(model: PreTrainedModel, stored: _Stored, world: Comm, files: SideBySide) -> None:
    """Writes a share of what is not of experts. Raises `OSError` once all ranks are through."""
    failure: OSError | None = None
    turn = 0
    for group in stored.groups:
        found = revert_weight_conversion(model, {name: whole(stored.rest[name]) for name in group})
        for name, tensor in found.items():
            if turn == world.rank and failure is None:
                try:
                    files.write(name, tensor)
                except OSError as error:  # the others still need this rank's rows
                    failure = error
            turn = (turn + 1) % world.size
    if failure is not None:
        raise failure


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a tensor of each expert is: `{}` in its name stands for the id, or rows of a stack."""

    name: str
    is_stacked: bool

    def write(self, files: SideBySide, values: Tensor, expert: int) -> None:
        if self.is_stacked:
            files.write(self.name, values, first_value=expert * values.numel())
        else:
            files.write(self.name.format(expert), values)


def _places_of_experts(
    model: PreTrainedModel, name: str, module: nn.Module, num_experts: int
) -> dict[str, _Place]:
    """The places of a module's tensors, by the names that those of a single expert have."""
    parameters = _parameters(name, module)
    one, every = (
        revert_weight_conversion(
            model, {key: _of_experts(tensor, count) for key, tensor in parameters.items()}
        )
        for count in (1, num_experts)
    )
    places = {key: _place(key, values, every, num_experts) for key, values in one.items()}
    unknown = [key for key, place in places.items() if place is None]
    if unknown:
        raise ModelError(
            f"the files of {model_type(model)} keep no expert of {unknown[0]} apart; save it on "
            "rank 0 with c2r.save_pretrained and the state_dict of c2r.gather_state_dict"
        )
    return {key: place for key, place in places.items() if place is not None}


def _place(
    key: str, values: Tensor, every: Mapping[str, Tensor], num_experts: int
) -> _Place | None:
    stack = every.get(key)
    if stack is not None and stack.shape == (num_experts * len(values), *values.shape[1:]):
        return _Place(name=key, is_stacked=True)
    parts = key.split(".")
    for index in (index for index, part in enumerate(parts) if part == "0"):
        pattern = ".".join([*parts[:index], "{}", *parts[index + 1 :]])
        if all(pattern.format(expert) in every for expert in range(num_experts)):
            return _Place(name=pattern, is_stacked=False)
    return None


def _parameters(name: str, module: nn.Module) -> dict[str, Any]:
    """The parameters of the experts at `name`, by their names in the model."""
    return {f"{name}.{key}": tensor for key, tensor in module.named_parameters(recurse=False)}


def _of_experts(tensor: Tensor, num_experts: int) -> Tensor:
    """Without values: the tensor as it would be of so many experts."""
    return torch.empty(num_experts, *tensor.shape[1:], dtype=tensor.dtype, device="meta")
