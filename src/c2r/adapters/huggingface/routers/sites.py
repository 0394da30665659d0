"""Where a model routes: the description of one router that discovery gives and the taps use."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import nn

from c2r.traces import ScoreKind


class SelectionRule(StrEnum):
    """The call by which a router selects.

    `TOP_K`: one top-k over all experts. `SCATTER`: the top-1 first, then the scores with the
    top-1 scattered to -inf (PhiMoE's sparse mixer, always k = 2).
    """

    TOP_K = "topk"
    SCATTER = "scatter"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RouterSite:
    """One router of a model.

    Attributes:
        name: module path of the router inside the model.
        module: the module whose forward selects the experts.
        num_experts: E, the width of the selection scores.
        top_k: experts per token that the model uses.
        call_k: k of the router's own top-k call, which may exceed `top_k`.
        score_kind: what the selection scores are.
        num_dims: dimensions of the selection scores.
        group_mark: the score that the model gives to experts outside a token's groups; None for
            a router without a group limit.
        num_free_experts: the last so many experts compute nothing and are always allowed.
        rule: the call by which the router selects.
    """

    name: str
    module: nn.Module
    num_experts: int
    top_k: int
    call_k: int
    score_kind: ScoreKind
    num_dims: int = 2
    group_mark: float | None = None
    num_free_experts: int = 0
    rule: SelectionRule = SelectionRule.TOP_K


def model_type(model: nn.Module) -> str:
    """The family of a model: its config's `model_type`, else its class name."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def output_entries(output: Any) -> tuple[Any, ...]:
    """The entries of a router's output, whether a tuple or a mapping; none for one tensor."""
    if isinstance(output, Mapping):
        return tuple(output.values())
    return tuple(output) if isinstance(output, tuple | list) else ()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode is put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
