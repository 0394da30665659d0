"""One tiny forward pass under observation: which calls select experts, and who gets the ids."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from c2r.adapters.huggingface.routers.sites import SelectionRule, evaluating, model_type
from c2r.errors import ModelError
from c2r.traces import ScoreKind

_NUM_TOKENS = 8
_SCORE_KINDS = {
    "softmax": ScoreKind.PROBABILITIES,
    "sigmoid": ScoreKind.GATES,
    "softplus": ScoreKind.GATES,
}
FORWARD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model raises that cannot run on what it is given."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """A call that may have selected experts: `ids` `[tokens, call_k]` out of `num_experts`."""

    name: str
    num_experts: int
    num_dims: int
    ids: Tensor
    score_kind: ScoreKind
    group_mark: float | None
    rule: SelectionRule


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandedIds:
    """Experts that were called with an integer tensor, `[tokens, k]`."""

    name: str
    ids: Tensor


def probe(model: nn.Module) -> list[Selection | HandedIds]:
    """What a forward pass on a few token ids shows, in order; the model is left as it was.

    Raises `ModelError` if the model cannot run on token ids alone.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.is_meta:
        raise ModelError(f"{model_type(model)} has no weights in memory; load them first")
    observer = _Observer()
    try:
        with observer.following(model), observer:
            run_tiny(model)
    except FORWARD_ERRORS as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"{model_type(model)} cannot run on {_NUM_TOKENS} token ids alone ({reason}); give "
            "the part of the model that takes input_ids, or describe its router with "
            "register_router"
        ) from error
    return observer.events


def run_tiny(model: nn.Module) -> None:
    """A forward pass on a few token ids that leaves the model as it was."""
    with _no_trace(model):
        model(input_ids=_token_ids(model, next(model.parameters()).device), use_cache=False)


def _token_ids(model: nn.Module, device: torch.device) -> Tensor:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embeddings, "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) else _NUM_TOKENS
    positions = torch.arange(1, 2 * _NUM_TOKENS, 2, device=device)
    return (positions * vocabulary // (2 * _NUM_TOKENS)).unsqueeze(0)


@contextmanager
def _no_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, random state and buffers are put back."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


class _Observer(TorchFunctionMode):
    """Notes top-k calls with the module that makes them, and integer tensors handed to modules."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Selection | HandedIds] = []
        self._running: list[str] = []
        self._kinds: dict[tuple[str, int], ScoreKind] = {}
        self._marks: dict[tuple[str, int], float] = {}

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Knows inside the block which module is running."""
        handles = []
        for name, module in model.named_modules():
            handles += [
                module.register_forward_pre_hook(
                    self._entering(name, _holds_experts(name, module)), with_kwargs=True
                ),
                module.register_forward_hook(self._leaving),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str, holds_experts: bool) -> Callable[..., None]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(name)
            self._kinds = {key: v for key, v in self._kinds.items() if key[0] != name}
            self._marks = {key: v for key, v in self._marks.items() if key[0] != name}
            for value in (*args, *kwargs.values()):
                if holds_experts and _is_integer(value) and value.ndim >= 2:
                    ids = value.reshape(-1, value.shape[-1])
                    self.events.append(HandedIds(name=name, ids=ids))

        return enter

    def _leaving(self, *_: Any) -> None:
        self._running.pop()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the call and notes what it says about routing."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not self._running:
            return result
        if name in _SCORE_KINDS and isinstance(result, Tensor):
            for module in self._running:
                self._kinds[module, result.shape[-1]] = _SCORE_KINDS[name]
        elif name == "masked_fill":
            self._note_mask(result, *args[1:], **kwargs)
        elif name == "topk":
            scores = args[0] if args else kwargs["input"]
            self._note_selection(scores, result[1], SelectionRule.TOP_K)
        elif name == "scatter" and len(args) == 4 and args[3] == -math.inf:
            self._note_selection(args[0], args[2], SelectionRule.SCATTER)
        return result

    def _note_mask(self, result: Tensor, mask: Tensor, value: Any) -> None:
        if isinstance(value, int | float) and mask.any():
            for module in self._running:
                self._marks[module, result.shape[-1]] = float(value)

    def _note_selection(self, scores: Tensor, ids: Tensor, rule: SelectionRule) -> None:
        key = self._running[-1], scores.shape[-1]
        is_top_k = rule is SelectionRule.TOP_K
        self.events.append(
            Selection(
                name=key[0],
                num_experts=key[1],
                num_dims=scores.ndim,
                ids=ids.reshape(-1, ids.shape[-1]),
                score_kind=self._kinds.get(key, ScoreKind.LOGITS) if is_top_k else ScoreKind.LOGITS,
                group_mark=self._marks.get(key) if is_top_k else None,
                rule=rule,
            )
        )


def _holds_experts(name: str, module: nn.Module) -> bool:
    """By its weights, stacked over the experts, or by its name where each expert is a module."""
    is_stacked = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    return is_stacked or name.rpartition(".")[2] == "experts"


def _is_integer(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64)
