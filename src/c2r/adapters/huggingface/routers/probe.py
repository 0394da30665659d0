"""One tiny forward pass under observation: which calls select experts, and who gets the ids."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from c2r.adapters.huggingface.models import (
    eager,
    evaluating,
    input_device,
    model_type,
    runner,
    running_devices,
)
from c2r.adapters.huggingface.routers.sites import SelectionRule
from c2r.adapters.huggingface.routers.torch_calls import (
    MASKED_FILL,
    SCATTER,
    TOP_K,
    Args,
    Kwargs,
    read_mask,
    read_removal,
    read_top_k,
)
from c2r.adapters.huggingface.weights import check_weights
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
    """A call that may have selected experts: `ids` `[tokens, call_k]` out of `num_experts`.

    `masks` are the masks, with the number filled in, by which scores of this width were masked
    before in the same module.
    """

    name: str
    num_experts: int
    num_dims: int
    ids: Tensor
    score_kind: ScoreKind
    masks: tuple[tuple[Tensor, float], ...]
    rule: SelectionRule

    @property
    def group_mark(self) -> float | None:
        """The number that was last filled in anywhere; None where no mask held."""
        return next((value for mask, value in reversed(self.masks) if mask.any()), None)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandedIds:
    """Experts that were called with an integer tensor, `[tokens, k]`."""

    name: str
    ids: Tensor


def probe(model: nn.Module) -> list[Selection | HandedIds]:
    """What a forward pass on a few token ids shows, in order; the model is left as it was.

    Raises `ModelError` if the model cannot run on token ids alone.
    """
    check_weights(model)
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
        runner(model)(input_ids=_token_ids(model, input_device(model)), use_cache=False)


def _token_ids(model: nn.Module, device: torch.device) -> Tensor:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embeddings, "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) else _NUM_TOKENS
    # Spread over the vocabulary and all different: equal tokens would be routed alike.
    positions = torch.arange(1, 2 * _NUM_TOKENS, 2, device=device)
    return (positions * vocabulary // (2 * _NUM_TOKENS)).unsqueeze(0)


@contextmanager
def _no_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, random state and buffers are put back."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta  # accelerate's, which bring their own back
    ]
    on_gpu = [device for device in running_devices(model) if device.type == "cuda"]
    with evaluating(model), eager(), torch.no_grad(), torch.random.fork_rng(devices=on_gpu):
        try:
            yield
        finally:
            for module, name, buffer, before in buffers:
                # The tensor itself: a model may have put another one in its place.
                module._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


class _Observer(TorchFunctionMode):
    """Notes top-k calls with the module that makes them, and integer tensors handed to modules.

    While the model runs it only keeps what it sees. Values are looked at after the pass, where
    they say which call selected: a call inside may not be one whose values can be read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Selection | HandedIds] = []
        self._running: list[str] = []
        self._kinds: dict[tuple[str, int], ScoreKind] = {}
        self._masks: dict[tuple[str, int], list[tuple[Tensor, float]]] = {}

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Knows inside the block which module is running."""
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                entering = self._entering(name, _holds_experts(name, module))
                for handle in (
                    module.register_forward_pre_hook(entering, with_kwargs=True),
                    module.register_forward_hook(self._leaving(name)),
                ):
                    hooks.callback(handle.remove)
            yield

    def _entering(self, name: str, holds_experts: bool) -> Callable[..., None]:
        def enter(_: nn.Module, args: Args, kwargs: Kwargs) -> None:
            self._running.append(name)
            # What was made of scores in an earlier call says nothing about those of this one.
            self._kinds = {key: v for key, v in self._kinds.items() if key[0] != name}
            self._masks = {key: v for key, v in self._masks.items() if key[0] != name}
            for value in (*args, *kwargs.values()):
                if holds_experts and _may_be_ids(value):
                    self.events.append(HandedIds(name=name, ids=_rows(value)))

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(*_: Any) -> None:
            # Modules whose error the model caught were entered too, but are never left.
            while self._running and self._running.pop() != name:
                pass

        return leave

    def __torch_function__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        """Runs the call and notes what it says about routing."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._running:
            self._note_scores(func, args, kwargs, result)
            chosen = _chosen(func, args, kwargs, result)
            if chosen is not None:
                self._note_selection(*chosen)
        return result

    def _note_scores(self, func: Any, args: Args, kwargs: Kwargs, result: Any) -> None:
        """What was made of scores, in every module that runs: the selecting one is not known."""
        if not isinstance(result, Tensor) or not result.ndim:
            return
        kind = _SCORE_KINDS.get(getattr(func, "__name__", ""))
        filled = read_mask(args, kwargs) if func in MASKED_FILL else None
        for module in self._running:
            key = module, result.shape[-1]
            if kind is not None:
                self._kinds[key] = kind
            if filled is not None:
                self._masks.setdefault(key, []).append(filled)

    def _note_selection(self, scores: Tensor, ids: Tensor, rule: SelectionRule) -> None:
        """Notes scores `[..., E]` and ids `[..., call_k]` as a choice of the innermost module."""
        key = self._running[-1], scores.shape[-1]
        is_top_k = rule is SelectionRule.TOP_K
        self.events.append(
            Selection(
                name=key[0],
                num_experts=key[1],
                num_dims=scores.ndim,
                ids=_rows(ids),
                score_kind=self._kinds.get(key, ScoreKind.LOGITS) if is_top_k else ScoreKind.LOGITS,
                masks=tuple(self._masks.get(key, ())) if is_top_k else (),
                rule=rule,
            )
        )


def _holds_experts(name: str, module: nn.Module) -> bool:
    """By its weights, stacked over the experts, or by its name where each expert is a module."""
    is_stacked = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    return is_stacked or name.rpartition(".")[2] == "experts"


def _may_be_ids(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.ndim < 2:
        return False
    return value.dtype in (torch.int32, torch.int64)


def _chosen(
    func: Any, args: Args, kwargs: Kwargs, result: Any
) -> tuple[Tensor, Tensor, SelectionRule] | None:
    """Scores `[..., E]`, ids `[..., call_k]` and rule of a call that may have selected experts."""
    if func in TOP_K and isinstance(result, tuple):
        call = read_top_k(args, kwargs)
        return None if call is None else (call[0], result[1], SelectionRule.TOP_K)
    if func in SCATTER:
        removal = read_removal(args, kwargs)
        return None if removal is None else (*removal, SelectionRule.SCATTER)
    return None


def _rows(ids: Tensor) -> Tensor:
    """Ids `[..., k]` as `[tokens, k]`; for k = 0 too, where reshape cannot tell the tokens."""
    return ids.flatten(0, -2) if ids.ndim > 1 else ids.unsqueeze(0)
