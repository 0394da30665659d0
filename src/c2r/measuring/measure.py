"""Runs a model under several plans on the same text."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.adapters.huggingface import (
    PreparedPlan,
    applied_plan,
    capture,
    enforce,
    evaluating,
    find_sites,
    prepare,
    remove,
)
from c2r.errors import InputError, ModelError
from c2r.measuring.tally import RoutingTally, Tally
from c2r.plans import ClusterTopology, LayerPlan, Plan


def unconstrained(plan: Plan) -> Plan:
    """The plan's placement with plain top-k routing: the reference to measure it against."""
    none = np.empty((0, 0), dtype=np.int64)
    layers = tuple(
        replace(layer, policy="top_k", strength=0.0, partners=none) for layer in plan.layers
    )
    return replace(plan, layers=layers)


def free_plan(model: Any) -> Plan:
    """Plain top-k, all experts of `model` on one rank. Raises `ModelError` as `find_sites`."""
    layers = tuple(
        LayerPlan(
            name=site.name,
            num_experts=site.num_experts,
            top_k=site.top_k,
            policy="top_k",
            strength=0.0,
            partners=np.empty((0, 0), dtype=np.int64),
            placement=np.zeros(site.num_experts, dtype=np.int64),
        )
        for site in find_sites(model)
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=1))


def measure_plans(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    plans: Sequence[PreparedPlan],
    tallies: Sequence[Tally],
) -> Iterator[None]:
    """Runs every plan on each batch in turn; yields after each batch, when all tallies are level.

    The first plan is the reference of all. Its logits of one batch are held, no more. The model's
    mode, and the plan that was applied to it, are put back when the generator ends or is closed.

    Args:
        model: a causal language model.
        batches: dicts of `input_ids` and `attention_mask`, `[batch, seq_len]`; every row is one
            window of the tallies.
        plans: prepared for `model`.
        tallies: one for each plan, grown in place.

    Raises:
        ModelError: the loss is not finite.
        RoutingError: a router gives NaN scores.
    """
    with (
        keeping_plan(model),
        evaluating(model),
        torch.no_grad(),
        capture(model) as recorder,
    ):
        for batch in batches:
            reference: Tensor | None = None
            for prepared, tally in zip(plans, tallies, strict=True):
                enforce(model, prepared)
                logits = _logits(model, batch)
                reference = logits if reference is None else reference
                tally.add_routing(RoutingTally.count(recorder.take(), prepared.plan))
                _add_windows(tally, logits, reference, batch)
            yield


@contextmanager
def keeping_plan(model: Any) -> Iterator[None]:
    """Puts the plan that is applied to `model`, or none, back after the block."""
    before = applied_plan(model)
    prepared = None if before is None else prepare(model, before, strict=False)
    try:
        yield
    finally:
        if prepared is None:
            remove(model)
        else:
            enforce(model, prepared)


def measure_plan(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    plan: Plan,
    *,
    strict: bool = True,
    on_batch: Callable[[], None] | None = None,
) -> tuple[Tally, Tally]:
    """The tallies of plain top-k on the plan's placement, and of `plan`.

    Args:
        model: a causal language model.
        batches: as in `measure_plans`.
        plan: made for `model`; need not be applied.
        strict: also require that the router weights are those that were profiled.
        on_batch: called after each batch.

    Raises:
        InputError: the batches hold no token to predict.
        PlanMismatchError: the plan was made for another model.
        ModelError, RoutingError: as `measure_plans`.
    """
    plans = [prepare(model, entry, strict) for entry in (unconstrained(plan), plan)]
    reference, tally = Tally(), Tally()
    for _ in measure_plans(model, batches, plans, (reference, tally)):
        if on_batch is not None:
            on_batch()
    check_predicted(tally)
    return reference, tally


def check_predicted(tally: Tally) -> None:
    """Raises `InputError` if no token was predicted."""
    if not sum(tally.num_predicted):
        raise InputError("the text holds no token to predict; give more text")


def _logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


def _add_windows(tally: Tally, logits: Tensor, reference: Tensor, batch: dict[str, Tensor]) -> None:
    ids, mask = batch["input_ids"].to(logits.device), batch["attention_mask"].to(logits.device)
    is_predicted = (mask[:, 1:] * mask[:, :-1]).bool()
    for row, kept in enumerate(is_predicted):
        if kept.any():
            window, expected = (values[row, :-1][kept] for values in (logits, reference))
            tally.add_window(window, expected, ids[row, 1:][kept])
    if not math.isfinite(sum(tally.losses)):
        raise ModelError(
            "the model's loss is not finite on this text; check its weights, and its dtype "
            "(--dtype float32)"
        )
