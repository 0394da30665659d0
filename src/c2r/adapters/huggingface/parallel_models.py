"""What a model whose experts are spread over processes knows of itself."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from c2r.adapters.huggingface.models import is_sharded_model, model_type
from c2r.errors import InputError
from c2r.parallel import Mesh
from c2r.plans import Plan

_ATTRIBUTE = "_c2r_experts"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spread:
    """How the experts of a model are spread.

    Attributes:
        names: paths of the experts modules.
        mesh: the processes.
        plan: places the experts on the ranks of a group; its policy need not be the one in force.
    """

    names: tuple[str, ...]
    mesh: Mesh
    plan: Plan


def set_spread(model: nn.Module, spread: Spread) -> None:
    """Notes that the experts of `model` are spread."""
    setattr(model, _ATTRIBUTE, spread)


def is_parallel(model: nn.Module) -> bool:
    """Whether the experts of this model are spread over processes."""
    return hasattr(model, _ATTRIBUTE)


def check_whole(model: nn.Module) -> None:
    """Raises `InputError` where this process holds some of the model's experts only."""
    if is_parallel(model):
        raise InputError(
            "this rank holds some of the experts only; call c2r.save_parallel on all ranks"
        )


def spread_of(model: nn.Module) -> Spread:
    """How they are. Raises `InputError` where the model is not parallel."""
    if not is_parallel(model):
        raise InputError(f"{model_type(model)} is not parallel; call c2r.parallelize first")
    spread: Spread = getattr(model, _ATTRIBUTE)
    return spread


def mesh_of(model: nn.Module) -> Mesh:
    """The processes of a parallel model. Raises `InputError` where it is not parallel."""
    return spread_of(model).mesh


def placement_of(model: nn.Module) -> Plan:
    """The plan by which the experts of a parallel model are placed. Raises `InputError`."""
    return spread_of(model).plan


def in_step(model: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Batches to run `model` on, each with whether it is one of `batches`.

    As long as a rank of the same group has batches, the others are given one token to run the model
    on, and to forget: their experts are needed, and of a model that FSDP2 shards every rank. Where
    the model is not parallel, `batches` it is.

    Raises:
        CommunicationError: a rank does not answer.
    """
    if not is_parallel(model):
        yield from ((batch, True) for batch in batches)
        return
    ranks = mesh_of(model).world if is_sharded_model(model) else mesh_of(model).ranks
    one_token = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
    own = iter(batches)
    while True:
        batch = next(own, None)
        num_running = torch.tensor(int(batch is not None), device=ranks.device)
        ranks.all_reduce(num_running)
        if not num_running:
            return
        yield (one_token, False) if batch is None else (batch, True)
