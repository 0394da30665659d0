"""Profile and devices in, plan out. Knows neither models nor process groups."""

from c2r.planning.from_sweep import cluster_of, placing, plan_from_sweep
from c2r.planning.partners import order_partners
from c2r.planning.placement import PlacementOptions, place_experts, replicate_experts
from c2r.planning.planner import make_plan
from c2r.planning.policies import (
    LayerShape,
    PolicySetting,
    free_strength,
    parse_policy,
    settings_per_layer,
    with_policy,
)
from c2r.planning.spreading import LayerSensitivity, spread_strengths
from c2r.policy_names import STRENGTH_NAMES

__all__ = [
    "STRENGTH_NAMES",
    "LayerSensitivity",
    "LayerShape",
    "PlacementOptions",
    "PolicySetting",
    "cluster_of",
    "free_strength",
    "make_plan",
    "order_partners",
    "parse_policy",
    "place_experts",
    "placing",
    "plan_from_sweep",
    "replicate_experts",
    "settings_per_layer",
    "spread_strengths",
    "with_policy",
]
