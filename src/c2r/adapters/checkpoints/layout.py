"""Which tensors of a checkpoint depend on the numbering of the experts, and how.

Names are those on disk, which differ from the module names of a loaded model (`block_sparse_moe`
for `mlp`, one tensor per expert for a stack). Every tensor of a router or of experts is known
here by its name and verified by its shape, or refused: nothing is guessed.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from c2r.adapters.checkpoints.shards import StoredTensor
from c2r.adapters.layers import split_layer
from c2r.errors import InputError, ModelError, PlanMismatchError

_EXPERT = re.compile(r"^(?P<before>(?:.*\.)?experts)\.(?P<expert>\d+)\.(?P<after>.+)$")
_STACK = re.compile(r"(^|\.)experts\.|(^|\.)(input|output)_linear\.weight$")
_ROUTER = re.compile(r"(^|\.)(gate|router)\.")
_ROUTER_ROWS = re.compile(
    r"(^|\.)(gate|router)(\.(wg|layer|proj|classifier|gate|router_mlp\.out_proj))?\.(weight|bias)$"
)
_PER_EXPERT = re.compile(
    r"(^|\.)(e_score_correction_bias|expert_bias|balancing_biases|per_expert_scale)$"
)
_EXPERT_IDS = re.compile(r"(^|\.)tid2eid$")
_NO_EXPERTS = re.compile(
    r"^(self_attn|self_attention|linear_attn|attention|attn)\."  # JetMoE's has experts
    r"|(^|\.)shared_"
    r"|(^|\.)experts\.post_expert_norm\.weight$"
    r"|(^|\.)router\.scale$"
    r"|(^|\.)gate\.(down_proj\.(weight|bias)|router_states_scale)$"
    r"|(^|\.)gate\.router_mlp\.(norm\.weight|fc\d+\.(weight|bias))$"
)
LOOKED_FOR = (
    "a router (gate.weight, gate.wg.weight, router.weight, router.layer.weight, "
    "router.proj.weight, router.classifier.weight, router.gate.weight or "
    "router_mlp.out_proj.weight) with one row per expert, and experts (experts.<i>.*, stacks under "
    "experts.*, or input_linear.weight and output_linear.weight) in the same layer"
)
_NUM_EXPERTS_KEY = re.compile(r"(?<!shared_)(?<!top_k_)experts$")


class Dependence(StrEnum):
    """How a tensor depends on the numbering of the experts.

    `NAME`: it belongs to one expert, whose id is in its name. `ROUTER`: it is one equal piece of
    bytes per expert of the router, in the order of their ids. `STACK`: the same, but only of the
    experts that have weights. `VALUES`: its values are expert ids.
    """

    NAME = "name"
    ROUTER = "router"
    STACK = "stack"
    VALUES = "values"


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeLayer:
    """The tensors of one MoE layer that depend on the numbering of its experts.

    Attributes:
        stem: the layer's path on disk, such as `model.layers.3`.
        num_experts: E, the width of the router.
        num_stored: experts that have weights; the ids after them compute nothing.
        tensors: how each depends, by full name.
    """

    stem: str
    num_experts: int
    num_stored: int
    tensors: Mapping[str, Dependence]

    def rename(self, name: str, new_expert: Sequence[int]) -> str:
        """The name of a tensor of dependence `NAME` after old id i became `new_expert[i]`."""
        match = _EXPERT.match(name)
        assert match is not None, f"{name} belongs to no one expert"
        return f"{match['before']}.{new_expert[int(match['expert'])]}.{match['after']}"


def find_moe_layers(
    tensors: Mapping[str, StoredTensor],
    expected: Sequence[tuple[str, int]],
    config: Mapping[str, Any],
) -> tuple[tuple[MoeLayer, ...], tuple[str, ...]]:
    """The MoE layers that a plan names, and the paths of those that it does not.

    Args:
        tensors: of the whole checkpoint.
        expected: router path and E of each of the plan's layers; paths may be empty, the layers
            are then the checkpoint's in their order.
        config: of the model.

    Raises:
        ModelError: no MoE layers are found, or a tensor of one is unknown.
        PlanMismatchError: the plan's layers are not the checkpoint's.
        InputError: a tensor has an unexpected shape, or experts are missing.
    """
    layers: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        split = split_layer(name)
        if split is not None:
            layers[split[0]][split[1]] = tensor
    moe = {stem: rest for stem, rest in layers.items() if _is_moe(rest)}
    if not moe:
        raise ModelError(
            f"no MoE layers were found in the checkpoint of {config.get('model_type')}; looked for "
            f"{LOOKED_FOR}"
        )
    stems = _match(expected, list(moe))
    if len(set(stems)) < len(stems):
        raise ModelError(
            f"the plan names {len(stems)} routers in {len(set(stems))} layers of the checkpoint; a "
            "layer with two routers (text and vision experts) cannot be permuted"
        )
    sizes = _expert_counts(config)
    found = tuple(
        _Classifier(stem, num_experts, sizes).classify(moe[stem])
        for stem, (_, num_experts) in zip(stems, expected, strict=True)
    )
    return found, tuple(stem for stem in moe if stem not in stems)


def _is_moe(rest: Iterable[str]) -> bool:
    names = [name for name in rest if not _NO_EXPERTS.search(name)]
    has_router = any(_ROUTER_ROWS.search(name) for name in names)
    return has_router and any(_EXPERT.match(name) or _STACK.search(name) for name in names)


def _expert_counts(config: Any) -> set[int]:
    """All numbers of experts that a config states, at any depth."""
    if not isinstance(config, Mapping):
        return set()
    counts = set()
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        if _NUM_EXPERTS_KEY.search(key):
            counts |= {item for item in values if isinstance(item, int)}
        counts |= _expert_counts(value)
    return counts


def _match(expected: Sequence[tuple[str, int]], stems: Sequence[str]) -> list[str]:
    """The stem of each expected layer, by its router's path, or in order where none has a path."""
    if not any(name for name, _ in expected):
        own = [stem for stem in stems if not _is_prediction(stem)]
        # By number, not by text: layer 10 comes after layer 9.
        own.sort(key=lambda stem: [int(p) if p.isdigit() else 0 for p in stem.split(".")])
        if len(own) != len(expected):
            raise PlanMismatchError(
                f"the plan has {len(expected)} layers without names, the checkpoint has "
                f"{len(own)} MoE layers ({own[0]} to {own[-1]}); plan from a profile of this model"
            )
        return own
    return [_match_one(name, stems) for name, _ in expected]


def _match_one(name: str, stems: Sequence[str]) -> str:
    """The stem of the layer whose router has this path in a loaded model."""
    # Names on disk may differ from those in a model, but the number of the layer does not.
    stem = (split_layer(name) or ("", ""))[0]
    if stem in stems:
        return stem
    number = stem.rpartition(".")[2]
    same = [s for s in stems if s.rpartition(".")[2] == number and not _is_prediction(s)]
    if len(same) != 1:
        raise PlanMismatchError(
            f"the plan names router {name}; of the checkpoint's MoE layers {len(same)} can be its "
            f"({', '.join(same or stems[:4])}); plan from a profile of this model"
        )
    return same[0]


def _is_prediction(stem: str) -> bool:
    """Whether the layer is one of a separate stack for multi-token prediction."""
    return any("mtp" in part or "nextn" in part for part in stem.split("."))


@dataclass(frozen=True, slots=True)
class _Classifier:
    """Tells how each tensor of one layer depends on its experts' numbers, or refuses it.

    Attributes:
        stem: the layer's path on disk.
        num_experts: E, as the plan says.
        counts: numbers of experts that the config states.
    """

    stem: str
    num_experts: int
    counts: set[int]

    def classify(self, rest: Mapping[str, StoredTensor]) -> MoeLayer:
        """The layer, from its tensors by their names below the stem."""
        num_stored = self._num_stored(rest)
        blocks = {self._block(name) for name in rest if _ROUTER_ROWS.search(name)} - {""}
        tensors = {}
        for name, tensor in rest.items():
            dependence = self._dependence(name, tensor, num_stored, blocks)
            if dependence is not None:
                tensors[tensor.name] = dependence
        return MoeLayer(
            stem=self.stem,
            num_experts=self.num_experts,
            num_stored=num_stored,
            tensors=tensors,
        )

    def _block(self, name: str) -> str:
        """The module that holds the router, in which any tensor as long as E is suspect."""
        match = _ROUTER.search(name)
        return "" if match is None else name[: match.start()]

    def _num_stored(self, rest: Mapping[str, StoredTensor]) -> int:
        """Experts with weights: E, or fewer where the config says so (LongCat, ZAYA)."""
        experts = _by_expert(rest)
        stacks = [
            tensor.shape[0]
            for name, tensor in rest.items()
            if _STACK.search(name) and not _NO_EXPERTS.search(name) and len(tensor.shape) == 3
        ]
        num_stored = min(stacks, default=self.num_experts)
        if experts:
            alike = (i for i in range(self.num_experts) if experts.get(i) != experts.get(0))
            # The first expert unlike expert 0 ends those with weights, as those after it have none.
            num_stored = next(alike, self.num_experts)
        if max(experts, default=0) >= self.num_experts or (
            num_stored != self.num_experts and num_stored not in self.counts
        ):
            raise InputError(
                f"{self.stem} should hold {self.num_experts} experts alike, as the plan says"
                f"{_difference(experts, num_stored)}; config.json speaks of {sorted(self.counts)} "
                "experts. Use the plan and the whole checkpoint of one model"
            )
        return num_stored

    def _dependence(
        self, name: str, tensor: StoredTensor, num_stored: int, blocks: set[str]
    ) -> Dependence | None:
        """How one tensor depends on the numbering; None where it does not.

        The order of the questions counts: what is known to be free first, then the most special.
        """
        if _NO_EXPERTS.search(name):
            return None
        if _EXPERT.match(name):
            return Dependence.NAME
        if _EXPERT_IDS.search(name):
            return self._expert_ids(tensor)
        if _PER_EXPERT.search(name) or _ROUTER_ROWS.search(name):
            _check_rows(tensor, self.num_experts)
            return Dependence.ROUTER
        if _STACK.search(name):
            return self._stack(tensor, num_stored)
        in_block = any(name.startswith(f"{block}.") for block in blocks)
        if _ROUTER.search(name) or (in_block and self.num_experts in tensor.shape):
            raise ModelError(
                f"{tensor.name} of shape {list(tensor.shape)} is in a MoE layer of "
                f"{self.num_experts} experts, and nothing says whether its order is theirs; "
                f"looked for {LOOKED_FOR}, and biases that are known"
            )
        return None

    def _stack(self, tensor: StoredTensor, num_stored: int) -> Dependence | None:
        if tensor.shape in ((), (1,)):  # one scale for all experts
            return None
        _check_rows(tensor, num_stored)
        return Dependence.STACK

    def _expert_ids(self, tensor: StoredTensor) -> Dependence:
        if tensor.dtype not in ("I32", "I64") or len(tensor.shape) != 2:
            raise InputError(
                f"{tensor.name} is {tensor.dtype} of shape {list(tensor.shape)}; expected a table "
                "of expert ids, [vocabulary, k] of I32 or I64"
            )
        return Dependence.VALUES


def _check_rows(tensor: StoredTensor, num_rows: int) -> None:
    shape = tensor.shape[1:] if tensor.shape[:1] == (1,) else tensor.shape
    # DBRX keeps the rows of all experts in one matrix.
    is_flat_stack = ".experts.mlp." in tensor.name and len(shape) == 2
    fits = shape[:1] == (num_rows,) or (is_flat_stack and shape[0] % num_rows == 0)
    if not fits or (tensor.end - tensor.begin) % num_rows:
        raise InputError(
            f"{tensor.name} has shape {list(tensor.shape)}; expected {num_rows} along its first "
            "dimension, one for each expert"
        )


_Kind = tuple[str, tuple[int, ...]]


def _by_expert(rest: Mapping[str, StoredTensor]) -> dict[int, dict[str, _Kind]]:
    """Type and shape of the tensors of each expert that has its own, by name without its id."""
    experts: dict[int, dict[str, _Kind]] = defaultdict(dict)
    for name, tensor in rest.items():
        if match := _EXPERT.match(name):
            key = f"{match['before']}.*.{match['after']}"
            experts[int(match["expert"])][key] = (tensor.dtype, tensor.shape)
    return experts


def _difference(experts: Mapping[int, Mapping[str, _Kind]], expert: int) -> str:
    """Words for the first tensor in which `expert` differs from expert 0."""
    if not experts:
        return f", but stacks {expert}"
    first, other = experts.get(0, {}), experts.get(expert, {})
    for key in sorted(first.keys() | other.keys()):
        if first.get(key) != other.get(key):
            return f"; {key} of expert {expert} is {_show(other.get(key))}, of expert 0 " + _show(
                first.get(key)
            )
    return f", but holds expert {max(experts)}"


def _show(kind: _Kind | None) -> str:
    return "missing" if kind is None else f"{kind[0]} {list(kind[1])}"
