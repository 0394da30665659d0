"""Slots: how engines number the places of experts on ranks, and how a plan fills them.

Every rank has the same number of slots, rank r those from r * slots / ranks on. A slot holds one
expert; experts with replicas fill several slots. Engines call it physical to logical.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from c2r.adapters.layers import split_layer
from c2r.errors import InputError, PlanError, PlanMismatchError
from c2r.plans import NO_EXPERTS, LayerPlan, Plan
from c2r.types import Int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SlotMap:
    """What each slot holds: per MoE layer, by its number in the model, `[slots]` expert ids.

    Every layer has as many slots as the first.
    """

    num_ranks: int
    num_experts: int
    layers: Mapping[int, Int]

    @property
    def num_slots(self) -> int:
        """Slots of all ranks."""
        return len(next(iter(self.layers.values())))

    @property
    def num_replicas(self) -> int:
        """Slots beyond one for each expert."""
        return self.num_slots - self.num_experts


def plan_slots(plan: Plan) -> SlotMap:
    """The slots of every layer of a plan, layers numbered as the plan's router paths say.

    Raises:
        PlanError: ranks or layers would have different numbers of slots, or layers different
            numbers of experts.
        PlanMismatchError: the plan does not tell the numbers of its layers.
    """
    sizes = sorted({layer.num_experts for layer in plan.layers})
    if len(sizes) > 1:
        raise PlanError(
            f"the layers have {sizes} experts; engines number the slots of all layers alike, so "
            "export each kind of layer on its own, or permute the checkpoint"
        )
    layers = {}
    for index, layer in enumerate(plan.layers):
        layers[layer_number(layer, index)] = _layer_slots(layer, plan.topology.num_ranks)
    if len(layers) != plan.num_layers:
        raise PlanMismatchError(
            "two layers of the plan have the same number (two stacks?); engines number the layers "
            "of one stack only"
        )
    lengths = sorted({len(slots) for slots in layers.values()})
    if len(lengths) > 1:
        raise PlanError(
            f"the layers fill {lengths} slots, and engines want as many in every layer: plan with "
            "the same number of replicas in each (c2r plan --replicas 2, or auto)"
        )
    return SlotMap(num_ranks=plan.topology.num_ranks, num_experts=sizes[0], layers=layers)


def layer_number(layer: LayerPlan, index: int) -> int:
    """The number of a layer in the model, dense layers counted. Raises `PlanMismatchError`."""
    split = split_layer(layer.name)
    if split is None:
        raise PlanMismatchError(
            f"layer {index} of the plan has no router path (its profile did not name one), so its "
            "number in the model is unknown; profile the model, or import its trace with the "
            "model named"
        )
    return int(split[0].rpartition(".")[2])


def _layer_slots(layer: LayerPlan, num_ranks: int) -> Int:
    ranks = [layer.experts_of(rank) for rank in range(num_ranks)]
    sizes = [len(experts) for experts in ranks]
    num_slots = sum(sizes)
    if len(set(sizes)) > 1:
        divisors = [r for r in range(2, layer.num_experts + 1) if layer.num_experts % r == 0]
        following = num_slots + -num_slots % num_ranks
        unequal = "" if num_slots % num_ranks else ", which would do if each rank had as many"
        raise PlanError(
            f"{layer.num_experts} experts and {num_slots - layer.num_experts} replicas make "
            f"{num_slots} slots{unequal}; engines want equal slots on {num_ranks} ranks. The next "
            f"size that is divisible is {following} ({following - layer.num_experts} replicas); "
            f"or plan for a number of ranks that divides {layer.num_experts}: "
            f"{', '.join(map(str, divisors))}"
        )
    return np.concatenate(ranks)


def layer_placement(slots: Int, num_experts: int, num_ranks: int) -> tuple[Int, Int]:
    """The placement `[E]` and replicas `[ranks, r]` that fill the slots so.

    A rank's first E / ranks slots are its own experts, the rest its replicas.

    Raises:
        InputError: the slots cannot be shared out so, or an expert is nowhere, twice on a rank or
            not a rank's own exactly once.
    """
    num_slots = len(slots)
    if num_slots % num_ranks or num_experts % num_ranks:
        raise InputError(
            f"{num_slots} slots of {num_experts} experts are not equal on {num_ranks} ranks; give "
            "the number of ranks that the file was written for"
        )
    by_rank = np.asarray(slots, dtype=np.int64).reshape(num_ranks, -1)
    own, replicas = np.split(by_rank, [num_experts // num_ranks], axis=1)
    if not np.array_equal(np.sort(own.ravel()), np.arange(num_experts)):
        raise InputError(
            f"the first {num_experts // num_ranks} slots of the ranks do not hold every expert "
            "once; the file is damaged or not written by c2r"
        )
    if any(len(set(row)) < len(row) for row in by_rank.tolist()):
        raise InputError("a rank holds an expert twice; the file is damaged")
    placement = np.empty(num_experts, dtype=np.int64)
    placement[own] = np.arange(num_ranks)[:, None]
    return placement, replicas if replicas.size else NO_EXPERTS


def check_slots(found: SlotMap, plan: Plan) -> None:
    """Raises `InputError` unless the slots hold every expert where the plan places it."""
    for index, layer in enumerate(plan.layers):
        slots = found.layers.get(layer_number(layer, index))
        if slots is None:
            raise InputError(f"the file has no row for {layer.name}; export the plan again")
        placement, replicas = layer_placement(slots, layer.num_experts, plan.topology.num_ranks)
        if not (
            np.array_equal(placement, layer.placement) and np.array_equal(replicas, layer.replicas)
        ):
            raise InputError(
                f"the file does not place the experts of {layer.name} as the plan does; export the "
                "plan again"
            )
