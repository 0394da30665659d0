"""How sensitive the model's output is to constraining one layer alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from c2r.adapters.huggingface import prepare
from c2r.measuring import Tally, check_predicted, measure_plans, unconstrained
from c2r.planning import LayerSensitivity, free_strength, spread_strengths, with_policy
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile
from c2r.results import SweepPoint
from c2r.text import Batch

Gather = Callable[[list[Tally]], list[Tally]]


def spread_points(
    model: Any,
    batches: Iterable[Batch],
    placed: Plan,
    profile: CollaborationProfile,
    points: Sequence[SweepPoint],
    gather: Gather = list,
) -> tuple[SweepPoint, ...]:
    """For each point, a point with strengths per layer, as many copies and the least total cost.

    Args:
        model: a causal language model.
        batches: text on which the points will not be measured.
        placed: a plan with the placement that counts.
        profile: what was chosen together.
        points: one policy at several strengths.
        gather: as `measure_sensitivity` takes it.

    Raises:
        InputError: the batches hold no token to predict.
        ModelError, PlanError, RoutingError: as `measure_plans`.
    """
    plans = [with_policy(placed, profile, point.policy, point.strength) for point in points]
    layers = measure_sensitivity(model, batches, plans, gather)
    return tuple(
        SweepPoint(
            policy=point.policy,
            strength=tuple(
                spread_strengths(layers, float(np.mean([layer.copies[index] for layer in layers])))
            ),
        )
        for index, point in enumerate(points, start=1)
    )


def measure_sensitivity(
    model: Any, batches: Iterable[Batch], plans: Sequence[Plan], gather: Gather = list
) -> list[LayerSensitivity]:
    """How sensitive the output is to each layer, at its strength in each plan.

    The cost of a layer is the KL of the model's output to the unconstrained model's when only that
    layer is constrained. Takes 1 + layers * plans forward passes a batch.

    Args:
        model: a causal language model.
        batches: text on which the plans will not be measured.
        plans: one policy at several strengths, on one placement.
        gather: makes the tallies of all text of those of these batches, where others run others.

    Raises:
        InputError: the batches hold no token to predict.
        ModelError, PlanError, RoutingError: as `measure_plans`.
    """
    free = unconstrained(plans[0])
    alone = [_only(free, plan, layer) for layer in range(free.num_layers) for plan in plans]
    prepared = [prepare(model, plan) for plan in (free, *alone)]
    tallies = [Tally() for _ in prepared]
    for _ in measure_plans(model, batches, prepared, tallies):
        pass
    reference, *others = gather(tallies)
    check_predicted(reference)
    return [
        _sensitivity(layer, plans, reference, others[layer * len(plans) :][: len(plans)])
        for layer in range(free.num_layers)
    ]


def _only(free: Plan, plan: Plan, layer: int) -> Plan:
    layers = list(free.layers)
    layers[layer] = plan.layers[layer]
    return replace(free, layers=tuple(layers))


def _sensitivity(
    layer: int, plans: Sequence[Plan], reference: Tally, tallies: Sequence[Tally]
) -> LayerSensitivity:
    first, num_ranks = plans[0].layers[layer], plans[0].topology.num_ranks
    free = free_strength(first.policy, first.num_experts, num_ranks)
    strengths = [plan.layers[layer].strength for plan in plans]
    costs = [tally.kl / sum(tally.num_predicted) for tally in tallies]
    copies = [_copies(tally, layer) for tally in (reference, *tallies)]
    return LayerSensitivity(
        strengths=np.array([free, *strengths]),
        cost=np.array([0.0, *costs]),
        copies=np.array(copies),
    )


def _copies(tally: Tally, layer: int) -> float:
    assert tally.routing is not None, "a batch was counted"
    return float(tally.routing.copies[layer] / tally.routing.num_tokens[layer])
