"""transformers models: found, constrained, recorded, saved; none of their files is edited."""

from c2r.adapters.huggingface.capture import Recorder, capture, describe_model, profile, traces
from c2r.adapters.huggingface.checkpoint import (
    PLAN_FILE,
    from_pretrained,
    is_hub_name,
    load_model,
    load_tokenizer,
    save_pretrained,
)
from c2r.adapters.huggingface.fingerprint import fingerprint
from c2r.adapters.huggingface.install import (
    ConstraintReport,
    PreparedPlan,
    applied_plan,
    apply,
    constraint_report,
    enforce,
    find_sites,
    prepare,
    remove,
)
from c2r.adapters.huggingface.registry import RouterSpec, register_router
from c2r.adapters.huggingface.sites import RouterSite, SelectionRule
from c2r.adapters.huggingface.skeleton import read_model_layers

__all__ = [
    "PLAN_FILE",
    "ConstraintReport",
    "PreparedPlan",
    "Recorder",
    "RouterSite",
    "RouterSpec",
    "SelectionRule",
    "applied_plan",
    "apply",
    "capture",
    "constraint_report",
    "describe_model",
    "enforce",
    "find_sites",
    "fingerprint",
    "from_pretrained",
    "is_hub_name",
    "load_model",
    "load_tokenizer",
    "prepare",
    "profile",
    "read_model_layers",
    "register_router",
    "remove",
    "save_pretrained",
    "traces",
]
