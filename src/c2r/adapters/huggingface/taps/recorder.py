"""Reads routing traces off a running model, constrained or not."""

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from c2r.adapters.expert_groups import num_expert_groups
from c2r.adapters.huggingface.batches import as_batches, forward_inputs, read_batch
from c2r.adapters.huggingface.models import (
    dtype_name,
    eager,
    evaluating,
    is_sharded_model,
    model_type,
    runner,
    unwrapped,
)
from c2r.adapters.huggingface.parallel_models import in_step
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.model_identity import fingerprint
from c2r.adapters.huggingface.routers.sites import RouterSite
from c2r.adapters.huggingface.sizes import sizes_of
from c2r.adapters.huggingface.taps.install import (
    Installation,
    host_of,
    install,
    installed,
    uninstall_unused,
)
from c2r.adapters.huggingface.taps.tap import RouterCall, TappedRouter, output_entries
from c2r.errors import InputError, ModelError, RoutingError
from c2r.traces import LayerTrace, RoutingTrace


class Recorder:
    """Holds the decisions of the last forward pass until they are taken or the next one begins.

    `host` is the module whose forward passes are recorded: the base model where it has all routers.
    """

    def __init__(self, installation: Installation, host: nn.Module) -> None:
        self.host = host
        self._routers = installation.routers
        self._mask: Tensor | None = None

    def take(self) -> RoutingTrace:
        """The trace of the last forward pass, padding left out; a router that did not run is empty.

        Raises:
            RoutingError: no forward pass since the last take, only a compiled one, or one whose
                attention_mask does not tell the padding.
        """
        if not any(router.c2r_tap.choices for router in self._routers):
            raise RoutingError(
                "no routing to take: run the model once, uncompiled, inside the capture"
            )
        layers = tuple(_layer_trace(router, self._mask) for router in self._routers)
        self._begin(None)
        return RoutingTrace(layers=layers)

    def _begin(self, mask: Tensor | None) -> None:
        self._mask = mask
        for router in self._routers:
            router.c2r_tap.choices.clear()


@contextmanager
def capture(model: nn.Module, attached: bool = False) -> Iterator[Recorder]:
    """Records what the routers decide in every forward pass of `model` inside the block.

    Padding is told by the `attention_mask` `[batch, tokens]` given to the model. Weights come
    detached, and scores too unless `attached`: then a loss of them has a gradient. Only the last
    forward pass is held.

        with capture(model) as recorder:
            model(**batch)
            trace = recorder.take()

    Raises:
        ModelError: the model is not supported.
        InputError: the model is being captured already.
    """
    model = unwrapped(model)
    installation = installed(model) or install(model, find_sites(model))
    if installation.is_captured:
        raise InputError("the model is being captured already; leave the other capture first")
    state, host = installation.state, host_of(model, installation.sites)
    recorder = Recorder(installation, host)
    with ExitStack() as undo:
        undo.callback(uninstall_unused, model)
        undo.callback(_stop, installation, recorder)
        installation.is_captured = state.is_recording = True
        state.keeps_graph = attached
        beginning = _beginning(recorder, host)
        handle = host.register_forward_pre_hook(beginning, with_kwargs=True)
        undo.callback(handle.remove)
        yield recorder


def _stop(installation: Installation, recorder: Recorder) -> None:
    installation.is_captured = installation.state.is_recording = False
    installation.state.keeps_graph = False
    recorder._begin(None)


def traces(model: nn.Module, batches: Iterable[Any]) -> Generator[RoutingTrace, None, None]:
    """Runs `model` on each batch and gives its routing trace.

    In evaluation mode, without gradients, cache and language-model head; the modes are put back
    when the generator ends or is closed. Of a parallel model some ranks may have more batches
    than others.

    Args:
        model: a transformers model.
        batches: dicts of `input_ids` `[batch, tokens]` and what else the model's forward takes;
            `attention_mask` tells padding. Also lists, arrays, single rows, or one batch alone.

    Raises:
        ModelError: the model is not supported.
        InputError: a batch that cannot be read, or that the model does not take.
        RoutingError: a router gives NaN scores.
    """
    with evaluating(model), capture(model) as recorder:
        whole = unwrapped(model)
        parts = [whole] if is_sharded_model(whole) else [recorder.host, whole]
        for batch, is_own in in_step(model, as_batches(batches)):
            part, inputs = forward_inputs(model, parts, read_batch(model, batch))
            with eager(), torch.no_grad():
                (runner(model) if part is whole else part)(**inputs, use_cache=False)
            trace = recorder.take()
            if is_own:
                yield trace


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What a profile's provenance says of its model: its names, dtype, digests and sizes."""
    sites = find_sites(model)
    config = getattr(unwrapped(model), "config", None)
    name = getattr(config, "name_or_path", "")
    return {
        "model_type": model_type(model),
        "model": str(name),
        "dtype": dtype_name(model),
        "model_fingerprint": fingerprint(model, sites),
        **_known_groups(model),
        **_known_sizes(model, sites[0].num_experts),
    }


def _known_groups(model: nn.Module) -> dict[str, int]:
    config: Any = getattr(unwrapped(model), "config", None)
    return {} if config is None else {"num_groups": num_expert_groups(config.to_dict())}


def _known_sizes(model: nn.Module, num_experts: int) -> dict[str, Any]:
    try:
        return {"sizes": sizes_of(model, num_experts).to_json()}
    except ModelError:  # a model that is not of transformers, or says too little
        return {}


def _beginning(recorder: Recorder, host: nn.Module) -> Callable[..., None]:
    parameters = tuple(inspect.signature(host.forward).parameters)
    index = parameters.index("attention_mask") if "attention_mask" in parameters else None

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if mask is None and index is not None and index < len(args):
            mask = args[index]
        recorder._begin(mask)

    return begin


def _layer_trace(router: TappedRouter, mask: Any) -> LayerTrace:
    """What a router decided in one forward pass, its calls one after the other, padding left out.

    Ids and weights are `[tokens, k]`, scores `[tokens, E]`.
    """
    site = router.c2r_site
    parts = [_decision(choice, site) for choice in router.c2r_tap.choices]
    if parts:
        ids, weights, scores = (_concatenate(part) for part in zip(*parts, strict=True))
        kept = _kept_tokens(mask, len(scores), site.name)
        if kept is not None:
            kept = kept.to(scores.device)  # layers may be on several
            ids, scores = ids[kept], scores[kept]
            weights = None if weights is None else weights[kept]
    else:
        ids = torch.empty(0, site.top_k, dtype=torch.int64)
        weights, scores = None, torch.empty(0, site.num_experts)
    return LayerTrace(
        name=site.name,
        expert_ids=ids,
        weights=weights,
        scores=scores,
        score_kind=site.score_kind,
    )


def _concatenate(parts: tuple[Any, ...]) -> Any:
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(parts)


def _decision(choice: RouterCall, site: RouterSite) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids `[tokens, k]` with the top-1 first, their weights if shown, scores `[tokens, E]`."""
    scores = choice.scores.reshape(-1, site.num_experts)
    entries = [
        entry.detach().reshape(-1, site.top_k)
        for entry in output_entries(choice.output)
        if isinstance(entry, Tensor) and entry.ndim >= 2 and entry.shape[-1] == site.top_k
    ]
    shown = [entry for entry in entries if entry.is_floating_point()]
    weights = shown[0] if len(shown) == 1 and len(shown[0]) == len(scores) else None
    if choice.ids is None:
        ids = next(entry for entry in entries if not entry.is_floating_point())
        return ids, weights, scores
    ids = choice.ids.reshape(-1, site.call_k)[:, : site.top_k]
    if choice.is_ordered:
        return ids, weights, scores
    # Equal scores go by expert id, as argmax does; top-k has no order for them.
    ids, by_id = ids.sort(dim=-1)
    order = scores.detach().gather(-1, ids).argsort(dim=-1, descending=True, stable=True)
    weights = None if weights is None else weights.gather(-1, by_id.gather(-1, order))
    return ids.gather(-1, order), weights, scores


def _kept_tokens(mask: Any, num_rows: int, name: str) -> Tensor | None:
    """Which rows are not padding, `[num_rows]` bool; None for all."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise RoutingError(
            f"attention_mask is {found}, which does not tell the padding; give [batch, tokens]"
        )
    num_tokens = num_rows // mask.shape[0]
    if num_tokens * mask.shape[0] != num_rows or num_tokens > mask.shape[1]:
        raise RoutingError(
            f"router {name} saw {num_rows} tokens, but attention_mask is {list(mask.shape)}; "
            "give [batch, tokens] for the tokens of this forward"
        )
    # With a cache, the mask also covers the tokens before this forward.
    kept = mask[:, mask.shape[1] - num_tokens :].reshape(-1).bool()
    return None if kept.all() else kept
