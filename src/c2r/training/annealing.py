"""From plain top-k to the plan, step by step."""

from dataclasses import replace

import numpy as np

from c2r.planning import STRENGTH_NAMES, free_strength
from c2r.plans import LayerPlan, Plan

STAGES = 20
"""Strengths that an annealing passes through: each has to be prepared, which is why it is not one a
step. Chosen by hand."""


def anneal(plan: Plan, step: int, num_steps: int) -> Plan:
    """The plan in force at `step`, counted from 0: the whole plan from `num_steps` on.

    Lists of partners shrink from all other experts to the plan's, ranks per token from all, and
    shares and prices rise from 0. Experts that the plan does not list are appended by id.
    """
    if step >= num_steps:
        return plan
    share = (step * STAGES // num_steps) / STAGES
    return replace(plan, layers=tuple(_weaken(layer, plan, share) for layer in plan.layers))


def _weaken(layer: LayerPlan, plan: Plan, share: float) -> LayerPlan:
    """The layer at `share` of the way from plain top-k to what it plans."""
    if layer.policy in ("c2r", "c2r_placed"):
        length = round(_between(layer.num_experts - 1, layer.top_t, share))
        strength = float(length) if layer.policy == "c2r" else layer.strength
        return replace(layer, partners=_all_partners(layer)[:, :length], strength=strength)
    free = free_strength(layer.policy, layer.num_experts, plan.topology.num_ranks)
    strength = _between(free, layer.strength, share)
    is_whole = STRENGTH_NAMES[layer.policy] == "m"
    return replace(layer, strength=float(round(strength)) if is_whole else strength)


def _between(free: float, target: float, share: float) -> float:
    return free + share * (target - free)


def _all_partners(layer: LayerPlan) -> np.ndarray:
    """Each expert's partners, then all others: `[E, E - 1]`."""
    rows = []
    for expert, listed in enumerate(layer.partners):
        # A dict keeps the first of equal keys: those listed, in their order, then the rest by id.
        known = dict.fromkeys([*listed.tolist(), *range(layer.num_experts)])
        rows.append([other for other in known if other != expert])
    return np.array(rows, dtype=np.int64).reshape(layer.num_experts, layer.num_experts - 1)
