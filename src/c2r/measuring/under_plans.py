"""Runs a model under one plan or several on the same text."""

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from c2r.adapters.huggingface import (
    PreparedPlan,
    applied_plan,
    as_batches,
    enforce,
    find_sites,
    in_step,
    prepare,
    remove,
)
from c2r.errors import InputError, ModelError
from c2r.measuring.forward import Batch, observing
from c2r.measuring.tally import RoutingTally, Tally
from c2r.parallel import Comm, gather_bytes
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.results import Measurement
from c2r.traces import RoutingTrace


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


def measure(
    model: Any,
    batches: Iterable[Batch],
    plan: Plan | None = None,
    *,
    strict: bool = True,
    on_batch: Callable[[int], None] | None = None,
    comm: Comm | None = None,
) -> Measurement:
    """What `plan` costs in quality and sends, beside plain top-k on the same placement.

    Args:
        model: a causal language model; its mode and the plan that is applied to it are put back.
        batches: dicts of `input_ids` and what else the model's forward takes, `[batch, seq_len]`
            as a rule, as `c2r.profile` takes them; each row is one window of the interval.
        plan: made for `model`; need not be applied. None for plain top-k, all experts on one rank.
        strict: also require that the router weights are those that were profiled.
        on_batch: called with the tokens of each batch, padding included.
        comm: ranks that share out the batches, of which each gives all; all get the result. The
            experts of `model` may be spread over them. None for one process.

    Raises:
        InputError: the batches hold no token to predict, or one cannot be read.
        PlanMismatchError: the plan was made for another model.
        ModelError: the model is not supported, or its loss is not finite.
        RoutingError: a router gives NaN scores.
    """
    plan = free_plan(model) if plan is None else plan
    free = unconstrained(plan)
    plans = (plan,) if plan.fingerprint == free.fingerprint else (free, plan)
    tallies = [Tally() for _ in plans]
    prepared = [prepare(model, entry, strict) for entry in plans]
    # Closed at once: an error of `on_batch` would hold the generator, and with it the taps.
    rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
    own = islice(as_batches(batches), rank, None, size)
    with closing(measure_plans(model, own, prepared, tallies)) as measured:
        for num_tokens in measured:
            if on_batch is not None:
                on_batch(num_tokens)
    tallies = gather_tallies(tallies, comm)
    check_predicted(tallies[0])
    reference = tallies[0].measured(plans[0])
    if len(plans) == 1:
        return reference
    return replace(tallies[1].measured(plan, tallies[0]), reference=reference)


def measure_plans(
    model: Any,
    batches: Iterable[Batch],
    plans: Sequence[PreparedPlan],
    tallies: Sequence[Tally],
    on_trace: Callable[[int, RoutingTrace], None] | None = None,
) -> Generator[int, None, None]:
    """Runs every plan on each batch in turn; yields after each batch, when all tallies are level.

    The first plan is the reference of all. Its logits of one batch are held, no more. The model's
    mode, and the plan that was applied to it, are put back when the generator ends or is closed.

    Args:
        model: a causal language model.
        batches: dicts of `input_ids` and `attention_mask`, `[batch, seq_len]`; every row is one
            window of the tallies. Of a parallel model some ranks may have more than others.
        plans: prepared for `model`.
        tallies: one for each plan, grown in place.
        on_trace: called with the index of each plan and how the model routed a batch under it.

    Yields:
        the tokens of the batch, padding included.

    Raises:
        ModelError: the loss is not finite.
        RoutingError: a router gives NaN scores.
    """
    with keeping_plan(model), observing(model) as observe:
        for batch, is_own in in_step(model, batches):
            reference = None
            for index, (prepared, tally) in enumerate(zip(plans, tallies, strict=True)):
                enforce(model, prepared)
                found, trace = observe(batch)
                if not is_own:
                    continue
                reference = found if reference is None else reference
                tally.add_routing(RoutingTally.count(trace, prepared.plan))
                tally.add_windows(found, reference)
                _check_finite(tally)
                if on_trace is not None:
                    on_trace(index, trace)
            if is_own:
                yield found.targets.numel()


def gather_tallies(tallies: Sequence[Tally], comm: Comm | None) -> list[Tally]:
    """The tallies of all ranks' batches, on all; None for one process."""
    if comm is None:
        return list(tallies)
    data = json.dumps([tally.to_json() for tally in tallies]).encode()
    total = [Tally() for _ in tallies]
    for part in gather_bytes(data, comm, "the gathering of tallies"):
        for ours, theirs in zip(total, json.loads(part), strict=True):
            ours.add(Tally.from_json(theirs))
    return total


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


def check_predicted(tally: Tally) -> None:
    """Raises `InputError` if no token was predicted."""
    if not sum(tally.num_predicted):
        raise InputError("the text holds no token to predict; give more text")


def _check_finite(tally: Tally) -> None:
    if not math.isfinite(sum(tally.losses)):
        raise ModelError(
            "the model's loss is not finite on this text; check its weights, and its dtype: "
            "float32 has the widest range"
        )
