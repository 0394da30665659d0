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
from c2r.adapters.huggingface.experts_layer import experts_forward
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
from c2r.adapters.huggingface.parallel_state import (
    expert_parameters,
    gather_state_dict,
    reduce_gradients,
)
from c2r.adapters.huggingface.registry import RouterSpec, register_router
from c2r.adapters.huggingface.sites import RouterSite, SelectionRule
from c2r.adapters.huggingface.skeleton import read_model_layers

__all__ = [
    "PLAN_FILE",
    "ConstraintReport",
    "ParallelOptions",
    "PreparedPlan",
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
    "enforce",
    "expert_parameters",
    "experts_forward",
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
    "prepare",
    "profile",
    "read_model_layers",
    "reduce_gradients",
    "register_router",
    "remove",
    "save_pretrained",
    "traces",
]
