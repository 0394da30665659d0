"""Rewrites a checkpoint so that contiguous placement of its experts is a plan's placement.

The model's outputs do not change: router rows, biases and experts are renumbered in the same way.
The permutation is stored with it, so that the original can be restored byte by byte.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.adapters.checkpoints.layout import MoeLayer, find_moe_layers
from c2r.adapters.checkpoints.order import (
    ExpertOrder,
    check_groups,
    contiguous_order,
    renumber_layer,
)
from c2r.adapters.checkpoints.rewrite import (
    Advance,
    other_weights,
    rewritten_folder,
    tensor_changes,
    write_config,
)
from c2r.adapters.checkpoints.shards import Checkpoint, open_checkpoint, read_json
from c2r.adapters.expert_groups import num_expert_groups
from c2r.adapters.huggingface.hollow import identity
from c2r.adapters.huggingface.routers.model_identity import check_fingerprint
from c2r.artifacts import Artifact, damaged_file, encode_artifact, read_artifact
from c2r.errors import InputError, ModelError
from c2r.plans import Plan
from c2r.plans.model_folder import (
    PERMUTATION_FILE,
    PERMUTED_FROM,
    PLAN_FILE,
    permutation_path,
    plan_path,
    save_plan,
)
from c2r.types import Int


@dataclass(frozen=True, kw_only=True, slots=True)
class PermutationReport:
    """What was written.

    Attributes:
        num_layers: MoE layers that were renumbered.
        num_tensors: tensors that were renamed or reordered.
        num_bytes: of all shards.
        untouched_layers: MoE layers that the plan does not name; they keep their order.
        omitted: files with weights beside the checkpoint, which hold the old order; not copied.
        num_replicas: of a rank in the plan; the checkpoint holds each expert once.
    """

    num_layers: int
    num_tensors: int
    num_bytes: int
    untouched_layers: tuple[str, ...]
    omitted: tuple[str, ...]
    num_replicas: int = 0


def permute_checkpoint(
    source: str | Path, plan: Plan | None, folder: str | Path, advance: Advance | None = None
) -> PermutationReport:
    """Writes the checkpoint in `source` to `folder` with its experts in the plan's order.

    The folder carries the renumbered plan, as `c2r apply` writes it, and the permutation, from
    which `undo_permutation` restores the tensors byte by byte. It appears whole or not at all.
    Work is done in `<folder>.partial`: after an interruption the same call resumes with the
    missing shards.

    A plan that says which router weights it is for is compared with them, and the folder's says
    the renumbered ones. Memory: the headers and one buffer of 1 MiB; to compare, the routers and
    one matrix.

    Args:
        source: a model folder with safetensors weights.
        plan: made for this model; None takes the one that the folder carries.
        folder: must not exist, or be empty.
        advance: called with the number of bytes of each shard written.

    Raises:
        InputError: the checkpoint is damaged, experts are missing or have unexpected shapes,
            the folder is not empty, or the disk has no room.
        ModelError: the layout of the checkpoint is unknown.
        PlanMismatchError: the plan's layers are not the checkpoint's, or its router weights.
        PlanError: no permutation gives the placement.
    """
    source, folder = Path(source), Path(folder)
    checkpoint = open_checkpoint(source)
    if permutation_path(source) is not None:
        raise InputError(
            f"{source} is permuted already; undo that first (c2r permute {source} --undo --out DIR)"
        )
    own_plan = plan_path(source)
    if plan is None:
        if own_plan is None:
            raise InputError(f"{source} carries no plan; give one")
        plan = Plan.load(own_plan)
    config = _read_config(source)
    expected = [(layer.name, layer.num_experts) for layer in plan.layers]
    found, untouched = find_moe_layers(checkpoint.tensors, expected, config)
    orders = [
        contiguous_order(layer, plan.topology, moe.num_stored)
        for layer, moe in zip(plan.layers, found, strict=True)
    ]
    num_groups = num_expert_groups(config)
    if num_groups > 1:
        for layer, order in zip(found, orders, strict=True):
            check_groups(layer.stem, order, num_groups)
    permutation = _encode_permutation(found, orders, source_has_plan=own_plan is not None)
    changes = tensor_changes(found, orders)
    is_known = _check_weights(source, plan)
    with rewritten_folder(checkpoint, changes, folder, permutation, advance) as partial:
        write_config(partial, config, None)
        permuted = _permuted_plan(plan, orders, identity(partial) if is_known else None)
        save_plan(permuted, partial)
        (partial / PERMUTATION_FILE).write_bytes(permutation)
        write_config(partial, config, permuted)
    return replace(_report(checkpoint, found, untouched), num_replicas=plan.num_replicas)


def undo_permutation(
    source: str | Path, folder: str | Path, advance: Advance | None = None
) -> PermutationReport:
    """Writes the permuted checkpoint in `source` to `folder` in its original order.

    The folder carries a plan only if the original did: the one that it was permuted with.

    Raises:
        InputError: `source` holds no permutation, or as `permute_checkpoint`.
    """
    source, folder = Path(source), Path(folder)
    checkpoint = open_checkpoint(source)
    stems, orders, source_had_plan = _read_permutation(source)
    config = _read_config(source)
    expected = [(stem, len(order.experts)) for stem, order in zip(stems, orders, strict=True)]
    found, untouched = find_moe_layers(checkpoint.tensors, expected, config)
    permutation = _encode_permutation(found, orders, source_has_plan=source_had_plan)
    changes = tensor_changes(found, orders)
    with rewritten_folder(checkpoint, changes, folder, permutation, advance) as partial:
        original = None
        if source_had_plan:
            original = _original_plan(_permuted_plan_of(source), orders)
            save_plan(original, partial)
        write_config(partial, config, original)
    return _report(checkpoint, found, untouched)


def _report(
    checkpoint: Checkpoint, layers: Sequence[MoeLayer], untouched: tuple[str, ...]
) -> PermutationReport:
    return PermutationReport(
        num_layers=len(layers),
        num_tensors=sum(len(layer.tensors) for layer in layers),
        num_bytes=checkpoint.num_bytes,
        untouched_layers=untouched,
        omitted=tuple(path.name for path in other_weights(checkpoint)),
    )


def _encode_permutation(
    layers: Sequence[MoeLayer], orders: Sequence[ExpertOrder], *, source_has_plan: bool
) -> bytes:
    header = {"stems": [layer.stem for layer in layers], "source_has_plan": source_has_plan}
    arrays = {}
    for index, order in enumerate(orders):
        arrays[f"layers.{index}.experts"] = order.experts.astype(np.int32)
        arrays[f"layers.{index}.ranks"] = order.ranks.astype(np.int32)
    return encode_artifact(Artifact(kind="permutation", header=header, arrays=arrays))


def _permuted_plan_of(folder: Path) -> Plan:
    path = plan_path(folder)
    if path is None:
        raise InputError(f"{folder} has lost its {PLAN_FILE}; permute the original again")
    return Plan.load(path)


def _read_permutation(folder: Path) -> tuple[list[str], list[ExpertOrder], bool]:
    """The layers of a permuted checkpoint, the orders that undo it, and whether it had a plan."""
    path = permutation_path(folder)
    if path is None:
        raise InputError(f"{folder} has no {PERMUTATION_FILE}; there is nothing to undo")
    artifact = read_artifact(path, "permutation")
    with damaged_file(path):
        stems = [str(stem) for stem in artifact.header["stems"]]
        orders = [
            ExpertOrder(
                experts=_permutation(artifact.arrays[f"layers.{index}.experts"]),
                ranks=_permutation(artifact.arrays[f"layers.{index}.ranks"]),
            ).inverse
            for index in range(len(stems))
        ]
        has_plan = artifact.header["source_has_plan"]
        if not isinstance(has_plan, bool):
            raise ValueError("source_has_plan")
        return stems, orders, has_plan


def _permutation(numbers: npt.NDArray[Any]) -> Int:
    """`[n]` int64. Raises `ValueError` unless each of 0 to n - 1 is there once."""
    if numbers.dtype.kind not in "iu" or not np.array_equal(
        np.sort(numbers), np.arange(numbers.size)
    ):
        raise ValueError("an order does not hold each number once")
    return numbers.astype(np.int64)


def _check_weights(source: Path, plan: Plan) -> bool:
    """Whether the plan is for the router weights in `source`; False where that cannot be known.

    Raises `PlanMismatchError` if it is for others.
    """
    known = plan.provenance.get("model_fingerprint")
    if not isinstance(known, Mapping) or "weights" not in known:
        return False
    found = identity(source)
    if found is not None:
        check_fingerprint(known, found, strict=True)
    return found is not None


def _permuted_plan(
    plan: Plan, orders: Sequence[ExpertOrder], found: Mapping[str, str] | None
) -> Plan:
    """The plan in the new numbers, for the renumbered router weights where they are known."""
    known = plan.provenance.get("model_fingerprint")
    provenance = {**plan.provenance, PERMUTED_FROM: known}
    if isinstance(known, Mapping):
        provenance["model_fingerprint"] = found or {"structure": known.get("structure")}
    return _renumber_plan(plan, orders, provenance)


def _original_plan(plan: Plan, orders: Sequence[ExpertOrder]) -> Plan:
    provenance = dict(plan.provenance)
    known = provenance.pop(PERMUTED_FROM, None)
    if known is not None:
        provenance["model_fingerprint"] = known
    return _renumber_plan(plan, orders, provenance)


def _renumber_plan(
    plan: Plan, orders: Sequence[ExpertOrder], provenance: Mapping[str, Any]
) -> Plan:
    layers = tuple(
        renumber_layer(layer, order) for layer, order in zip(plan.layers, orders, strict=True)
    )
    return replace(plan, layers=layers, provenance=provenance)


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json, unless it names single experts, which renaming would make wrong."""
    config = read_json(folder / "config.json")
    quantization = json.dumps(config.get("quantization_config"))
    # Names are perhaps patterns, and JSON doubles the backslash before a dot.
    if re.search(r"experts\\*\.\d", quantization):
        raise ModelError(
            f"the quantization_config of {folder} names single experts, whose numbers would "
            "change; permute the unquantised checkpoint and quantise that"
        )
    return config
