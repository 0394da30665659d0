"""transformers models: found, constrained, recorded, saved; none of their files is edited."""

from importlib import import_module

from c2r.adapters.huggingface.batches import (
    Batch,
    as_batches,
    check_ids,
    forward_inputs,
    read_batch,
)
from c2r.adapters.huggingface.constrained_folder import constrain_folder, local_folder
from c2r.adapters.huggingface.expert_parallel.experts_layer import experts_forward
from c2r.adapters.huggingface.expert_parallel.loading import (
    freeing_at_once,
    has_expert_parallelism,
)
from c2r.adapters.huggingface.expert_parallel.reading import load_parallel
from c2r.adapters.huggingface.expert_parallel.saving import save_parallel
from c2r.adapters.huggingface.expert_parallel.sharding import shard
from c2r.adapters.huggingface.expert_parallel.spread import (
    ParallelOptions,
    counting_rows,
    parallelize,
)
from c2r.adapters.huggingface.expert_parallel.state import (
    HeldRows,
    expert_parameters,
    gather_state_dict,
    held_rows,
    reduce_gradients,
    refresh_replicas,
)
from c2r.adapters.huggingface.folders import (
    from_pretrained,
    load_model,
    load_tokenizer,
    save_pretrained,
)
from c2r.adapters.huggingface.hub import push_to_hub, save_plan_only
from c2r.adapters.huggingface.models import (
    dtype_name,
    eager,
    evaluating,
    is_sharded_model,
    model_type,
    runner,
    unwrapped,
)
from c2r.adapters.huggingface.parallel_models import (
    in_step,
    is_parallel,
    mesh_of,
    placement_of,
)
from c2r.adapters.huggingface.permuted_folder import (
    PermutationReport,
    permute_checkpoint,
    undo_permutation,
)
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.model_identity import fingerprint
from c2r.adapters.huggingface.routers.registry import RouterSpec, register_router
from c2r.adapters.huggingface.routers.sites import RouterSite, SelectionRule
from c2r.adapters.huggingface.routers.skeleton import read_model_layers
from c2r.adapters.huggingface.sources import Source, find_source, is_hub_name
from c2r.adapters.huggingface.taps.install import (
    ConstraintReport,
    PreparedPlan,
    applied_plan,
    apply,
    constraint_report,
    enforce,
    keep_plan_around,
    prepare,
    remove,
)
from c2r.adapters.huggingface.taps.profiling import profile, unfinished_parts
from c2r.adapters.huggingface.taps.recorder import Recorder, capture, describe_model, traces
from c2r.adapters.huggingface.taps.replay import Replay, ReplayedLayer, replay
from c2r.adapters.huggingface.weights import is_offloaded

if has_expert_parallelism():
    import_module("c2r.adapters.huggingface.expert_parallel.implementation")

__all__ = [
    "Batch",
    "ConstraintReport",
    "HeldRows",
    "ParallelOptions",
    "PermutationReport",
    "PreparedPlan",
    "Recorder",
    "Replay",
    "ReplayedLayer",
    "RouterSite",
    "RouterSpec",
    "SelectionRule",
    "Source",
    "applied_plan",
    "apply",
    "as_batches",
    "capture",
    "check_ids",
    "constrain_folder",
    "constraint_report",
    "counting_rows",
    "describe_model",
    "dtype_name",
    "eager",
    "enforce",
    "evaluating",
    "expert_parameters",
    "experts_forward",
    "find_sites",
    "find_source",
    "fingerprint",
    "forward_inputs",
    "freeing_at_once",
    "from_pretrained",
    "gather_state_dict",
    "held_rows",
    "in_step",
    "is_hub_name",
    "is_offloaded",
    "is_parallel",
    "is_sharded_model",
    "keep_plan_around",
    "load_model",
    "load_parallel",
    "load_tokenizer",
    "local_folder",
    "mesh_of",
    "model_type",
    "parallelize",
    "permute_checkpoint",
    "placement_of",
    "prepare",
    "profile",
    "push_to_hub",
    "read_batch",
    "read_model_layers",
    "reduce_gradients",
    "refresh_replicas",
    "register_router",
    "remove",
    "replay",
    "runner",
    "save_parallel",
    "save_plan_only",
    "save_pretrained",
    "shard",
    "traces",
    "undo_permutation",
    "unfinished_parts",
    "unwrapped",
]
