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
    applied_plan,
    apply,
    constraint_report,
    find_sites,
    remove,
)
from c2r.adapters.huggingface.registry import RouterSpec, register_router
from c2r.adapters.huggingface.sites import RouterSite, SelectionRule

__all__ = [
    "PLAN_FILE",
    "ConstraintReport",
    "Recorder",
    "RouterSite",
    "RouterSpec",
    "SelectionRule",
    "applied_plan",
    "apply",
    "capture",
    "constraint_report",
    "describe_model",
    "find_sites",
    "fingerprint",
    "from_pretrained",
    "is_hub_name",
    "load_model",
    "load_tokenizer",
    "profile",
    "register_router",
    "remove",
    "save_pretrained",
    "traces",
]
