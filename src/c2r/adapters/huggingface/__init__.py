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
from c2r.adapters.huggingface.expert_parallel import (
    ParallelOptions,
    count_rows,
    is_parallel,
    load_parallel,
    parallelize,
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
from c2r.adapters.huggingface.parallel_state import (
    expert_parameters,
    gather_state_dict,
    reduce_gradients,
)
from c2r.adapters.huggingface.registry import RouterSpec, register_router
from c2r.adapters.huggingface.sites import RouterSite, SelectionRule

__all__ = [
    "PLAN_FILE",
    "ConstraintReport",
    "ParallelOptions",
    "Recorder",
    "RouterSite",
    "RouterSpec",
    "SelectionRule",
    "applied_plan",
    "apply",
    "capture",
    "constraint_report",
    "count_rows",
    "describe_model",
    "expert_parameters",
    "find_sites",
    "fingerprint",
    "from_pretrained",
    "gather_state_dict",
    "is_hub_name",
    "is_parallel",
    "load_model",
    "load_parallel",
    "load_tokenizer",
    "parallelize",
    "profile",
    "reduce_gradients",
    "register_router",
    "remove",
    "save_pretrained",
    "traces",
]
