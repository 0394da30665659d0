"""Spreads a traffic budget over layers by what constraining each of them costs."""

import itertools
from dataclasses import dataclass

import numpy as np

from c2r.errors import PlanError
from c2r.types import Float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerSensitivity:
    """What one layer costs and sends when it alone is constrained, at several strengths.

    Attributes:
        strengths: `[strengths]` of one policy, the first of them unconstrained.
        cost: `[strengths]`, such as the KL of the model's output to the unconstrained model's.
        copies: `[strengths]` copies per token of this layer.
    """

    strengths: Float
    cost: Float
    copies: Float


def spread_strengths(layers: list[LayerSensitivity], copies: float) -> list[float]:
    """The strength of each layer that meets a mean of `copies` per token at the least total cost.

    Costs of layers are taken to add up. Each layer moves along the lower convex hull of its
    (copies, cost) points; the step that costs least per copy saved is taken first, wherever it
    is, until the mean over layers meets the budget. That is the Lagrangian optimum at one price
    per copy for all layers, but for the last step, which may overshoot.

    Raises:
        PlanError: no strengths that were measured get the copies so low.
    """
    hulls = [_lower_hull(layer) for layer in layers]
    steps = sorted(
        (slope, layer, index)
        for layer, hull in enumerate(hulls)
        for index, slope in enumerate(_slopes(layers[layer], hull), start=1)
    )
    chosen = [hull[0] for hull in hulls]
    # On a hull slopes rise: sorted steps of one layer stay in its own order, and greedy is exact.
    total = sum(layer.copies[index] for layer, index in zip(layers, chosen, strict=True))
    for _, layer, index in steps:
        if total <= copies * len(layers):
            break
        total += layers[layer].copies[hulls[layer][index]] - layers[layer].copies[chosen[layer]]
        chosen[layer] = hulls[layer][index]
    if total > copies * len(layers) * (1 + 1e-9):
        raise PlanError(
            f"{copies:.3f} copies per token are fewer than the {total / len(layers):.3f} of the "
            "tightest strengths measured; measure tighter ones, or ask for more copies"
        )
    return [float(layer.strengths[index]) for layer, index in zip(layers, chosen, strict=True)]


def _lower_hull(layer: LayerSensitivity) -> list[int]:
    """Points that no mix of others beats, from the most copies to the fewest; costs rise."""
    hull: list[int] = []
    for index in np.lexsort([layer.cost, -layer.copies]).tolist():
        # A point that costs no more with fewer copies, then one above the line of its neighbours.
        while hull and layer.cost[hull[-1]] >= layer.cost[index]:
            hull.pop()
        while len(hull) > 1 and _slope(layer, hull[-2], hull[-1]) >= _slope(layer, hull[-1], index):
            hull.pop()
        if not hull or layer.copies[index] < layer.copies[hull[-1]]:
            hull.append(index)
    return hull


def _slopes(layer: LayerSensitivity, hull: list[int]) -> list[float]:
    """Cost per copy saved of each step along the hull, rising."""
    return [_slope(layer, first, second) for first, second in itertools.pairwise(hull)]


def _slope(layer: LayerSensitivity, first: int, second: int) -> float:
    """Cost per copy saved between two points."""
    saved = layer.copies[first] - layer.copies[second]
    return float((layer.cost[second] - layer.cost[first]) / saved)
