"""The routing policies by name: what their one number means, and which numbers fit a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from c2r.errors import InputError, PlanError
from c2r.ops.limits import check_top_t
from c2r.planning.partners import order_partners
from c2r.planning.placement import check_ranks
from c2r.plans.plan import Plan
from c2r.policy_names import STRENGTH_NAMES
from c2r.profiling import CollaborationProfile, LayerProfile
from c2r.types import Int


class LayerShape(Protocol):
    """What a strength must fit: a layer of a profile, or a router of a model."""

    @property
    def num_experts(self) -> int:
        """E."""

    @property
    def top_k(self) -> int:
        """Experts per token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySetting:
    """A policy and its strength at one layer."""

    policy: str
    strength: float

    def check(self, layer: LayerShape, num_ranks: int) -> None:
        """Raises `PlanError` unless the strength fits a layer that is placed on `num_ranks`."""
        unit = STRENGTH_NAMES[self.policy]
        if not unit and self.strength != 0:
            raise PlanError(f"{self.policy} has no strength; leave out the {self.strength:g}")
        if not np.isfinite(self.strength):
            raise PlanError(f"{self.policy} with {unit} = {self.strength}; give a finite number")
        if unit in ("T", "m") and self.strength != int(self.strength):
            raise PlanError(f"{self.policy} with {unit} = {self.strength}; give a whole number")
        if unit == "T":
            check_top_t(int(self.strength), layer.num_experts, layer.top_k)
        elif unit == "m":
            self._check_ranks(layer, num_ranks)
        elif unit and not 0 <= self.strength < 1:
            raise PlanError(
                f"{self.policy} with {unit} = {self.strength}; choose {unit} from 0 to below 1"
            )

    def _check_ranks(self, layer: LayerShape, num_ranks: int) -> None:
        smallest = layer.num_experts // num_ranks
        fewest = -(-layer.top_k // smallest)
        if not fewest <= self.strength <= num_ranks:
            raise PlanError(
                f"{self.policy} with m = {int(self.strength)} ranks per token does not fit "
                f"{num_ranks} ranks of {smallest} experts with k = {layer.top_k}; "
                f"choose m from {fewest} to {num_ranks}"
            )

    def partners(self, layer: LayerProfile, placement: Int) -> Int:
        """The lists `[E, T]` that the policy routes by; T = 0 for a policy without lists."""
        if self.policy == "c2r":
            return order_partners(layer.coactivation)[:, : int(self.strength)]
        if self.policy == "c2r_placed":
            return order_partners_by_rank(layer.coactivation, placement, int(self.strength))
        return np.empty((layer.num_experts, 0), dtype=np.int64)


def parse_policy(text: str) -> tuple[str, tuple[float, ...]]:
    """The policy and the strengths of `priced=0.1` or `budgeted=0.05,0.1`; none of `priced`.

    Raises:
        InputError: what follows the `=` is not numbers with commas between.
        PlanError: the policy is unknown.
    """
    policy, equals, strengths = text.partition("=")
    _check_known(policy)
    if not equals:
        return policy, ()
    try:
        return policy, tuple(float(part) for part in strengths.split(","))
    except ValueError:
        raise InputError(
            f"the strengths of {text} are not numbers with commas between; write priced=0.1 or "
            "budgeted=0.05,0.1"
        ) from None


def _check_known(policy: str) -> None:
    if policy not in STRENGTH_NAMES:
        raise PlanError(f"policy {policy!r} is unknown; choose {', '.join(STRENGTH_NAMES)}")


def settings_per_layer(
    policy: str,
    strength: float | Sequence[float] | None,
    layers: Sequence[LayerShape],
    num_ranks: int,
) -> list[PolicySetting]:
    """The setting of each layer, from one strength for all, one per layer, or the default.

    The defaults: half of the experts as partners, as published for Qwen1.5-MoE (30 of 60) but at
    least k - 1; two ranks per token; a tenth of the score mass.

    Raises:
        PlanError: the policy is unknown, there are not as many strengths as layers, one does not
            fit its layer, or there are more ranks than experts.
    """
    _check_known(policy)
    if strength is None:
        strengths = [_default_strength(policy, layer) for layer in layers]
    elif isinstance(strength, int | float | np.integer | np.floating):
        strengths = [float(strength)] * len(layers)
    else:
        strengths = [float(value) for value in strength]
    if len(strengths) != len(layers):
        raise PlanError(
            f"{len(strengths)} values of {STRENGTH_NAMES[policy]} for {len(layers)} layers; "
            f"give one number, or {len(layers)}"
        )
    settings = [PolicySetting(policy=policy, strength=value) for value in strengths]
    for layer, setting in zip(layers, settings, strict=True):
        check_ranks(layer.num_experts, num_ranks)
        setting.check(layer, num_ranks)
    return settings


def _default_strength(policy: str, layer: LayerShape) -> float:
    match STRENGTH_NAMES[policy]:
        case "T":
            half = max(layer.top_k - 1, layer.num_experts // 2)
            return float(min(half, layer.num_experts - 1))
        case "m":
            return 2.0
        case "":
            return 0.0
        case _:
            return 0.1


def free_strength(policy: str, num_experts: int, num_ranks: int) -> float:
    """The strength at which the policy is plain top-k: T = E - 1, m = R, or 0."""
    return {"T": num_experts - 1.0, "m": float(num_ranks)}.get(STRENGTH_NAMES[policy], 0.0)


def with_policy(
    plan: Plan,
    profile: CollaborationProfile,
    policy: str,
    strength: float | Sequence[float] | None = None,
) -> Plan:
    """The plan with its placement kept and another policy in all layers.

    Args:
        plan: made from `profile`.
        profile: what was chosen together; lists of partners are made from it.
        policy: a name in `STRENGTH_NAMES`.
        strength: as in `settings_per_layer`.

    Raises:
        PlanError: as `make_plan`.
    """
    settings = settings_per_layer(policy, strength, profile.layers, plan.topology.num_ranks)
    layers = []
    for placed, layer, setting in zip(plan.layers, profile.layers, settings, strict=True):
        layers.append(
            replace(
                placed,
                policy=setting.policy,
                strength=setting.strength,
                partners=setting.partners(layer, placed.placement),
            )
        )
    return replace(plan, layers=tuple(layers))


def order_partners_by_rank(coactivation: Int, placement: Int, num_ranks: int) -> Int:
    """Partners closed under placement: all experts of the ranks that collaborate most with each.

    Each expert's own rank comes first, then the ranks with the most co-activation, `num_ranks` in
    all; within a rank the closest collaborators first.

    Args:
        coactivation: `[E, E]` counts of tokens that chose both experts.
        placement: `[E]` the rank of each expert.
        num_ranks: m, how many ranks a top-1 expert may reach.

    Returns:
        `[E, T]` int64. Where ranks differ in size, a short row is filled up with the expert
        itself, which is allowed beside itself anyhow.
    """
    num_experts = len(placement)
    everyone = order_partners(coactivation)
    counts = coactivation.astype(np.float64)
    np.fill_diagonal(counts, 0.0)
    held = counts @ np.eye(int(placement.max()) + 1)[placement]
    held[np.arange(num_experts), placement] = np.inf  # its own rank comes first, whatever it holds
    turn = np.argsort(np.argsort(-held, axis=1, kind="stable"), axis=1)
    rows = []
    for expert, partners in enumerate(everyone):
        turns = turn[expert, placement[partners]]
        rows.append(partners[np.argsort(turns, kind="stable")][: np.sum(turns < num_ranks)])
    # A filled-up row lists the expert itself, which changes nothing: it is allowed anyhow.
    width = max(len(row) for row in rows)
    padded = [np.pad(row, (0, width - len(row)), constant_values=i) for i, row in enumerate(rows)]
    return np.array(padded, dtype=np.int64).reshape(num_experts, width)
