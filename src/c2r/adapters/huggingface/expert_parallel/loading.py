"""What transformers' own loader of sharded models is told, and what it leaves behind."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedModel, __version__

from c2r.errors import ModelError, PlanError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h of glibc numbers them


def has_expert_parallelism() -> bool:
    """Whether this transformers can spread experts over ranks itself."""
    return find_spec("transformers.distributed.expert_parallel") is not None


def check_transformers() -> None:
    """Raises `ModelError` where it cannot."""
    if not has_expert_parallelism():
        raise ModelError(
            f"transformers {__version__} cannot spread experts over ranks; install 5.23 or later, "
            "or run the model in one process"
        )


def reading_in_parts(
    skeleton: PreTrainedModel, names: tuple[str, ...], num_ranks: int, all_else: bool = False
) -> Any:
    """A `DistributedConfig` by which each rank reads its part of the experts, and all else whole.

    It shards experts only inside a tensor-parallel or FSDP group. So the ranks are a
    tensor-parallel group with nothing but whole modules in it. With `all_else` each rank reads its
    rows of every other parameter, too; such a model is to be sharded by FSDP2 before it runs.

    Args:
        skeleton: the model without weights.
        names: paths of its experts modules.
        num_ranks: ranks to read by.
        all_else: whether what is not expert is read in parts.

    Raises:
        PlanError: the ranks do not divide the experts, so that equal parts cannot be read.
    """
    for name in names:
        num_experts = int(skeleton.get_submodule(name).num_experts)
        if num_experts % num_ranks:
            raise PlanError(
                f"{num_experts} experts cannot be read in equal parts by {num_ranks} ranks; choose "
                "a number of ranks that divides them, or load the model whole and call "
                "c2r.parallelize"
            )
    from transformers.distributed import DistributedConfig

    how = dict.fromkeys(skeleton.tp_plan or [next(skeleton.named_children())[0]], "replicate")
    if all_else:
        # Its only way to read the first dimension in parts, whatever the module.
        how |= dict.fromkeys(_read_by_rows(skeleton, names), "embedding_rowwise")
    return DistributedConfig(
        tp_size=num_ranks, tp_plan=how, ep_size=num_ranks, ep_implementation="c2r"
    )


def _read_by_rows(skeleton: PreTrainedModel, experts: tuple[str, ...]) -> set[str]:
    """Parameters, named as in plans of transformers, whose rows are rows of a tensor in the files.

    Not those that transformers makes from several tensors or by moving values, nor those of
    quantised models; nor single numbers.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter
    from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

    if getattr(skeleton.config, "quantization_config", None) is not None:
        return set()
    made = [
        conversion.reverse_transform()
        for conversion in get_model_conversion_mapping(skeleton)
        if isinstance(conversion, WeightConverter)
    ]
    others = tuple(f"{name}." for name in experts)
    names: dict[bool, set[str]] = {True: set(), False: set()}
    # By all its names: a tied weight may stand in the files by each.
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        if not name.startswith(others):
            is_made = any(each.rename_source_key(name)[1] is not None for each in made)
            has_rows = parameter.ndim > 0 and not is_made
            names[has_rows].add(replace_layer_number_by_wildcard(name))
    return names[True] - names[False]


def forget_distribution(model: PreTrainedModel) -> None:
    """Leaves an ordinary model behind: what is spread is known to `c2r` from here on."""
    # Its hooks would exchange what `LocalExperts` exchanges, its mesh would shard what is saved.
    for module in model.modules():
        if module.__dict__.pop("_is_hooked", False):
            module.__dict__.pop("forward", None)
    model.config.distributed_config = None
    model._device_mesh = model._mesh_manager = None
    model._is_distributed_loading_by_transformers = False
    model._tp_size = model._fsdp_size = None


@contextmanager
def freeing_at_once() -> Iterator[None]:
    """Inside the block, what is freed of larger tensors goes back to the system at once.

    glibc keeps freed memory of up to 32 MiB a piece, in holes that the next tensors do not fit:
    a rank that loaded its experts one by one held 1.3 times its share. Does nothing where there is
    another C library.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, 128 * 2**10)
    try:
        yield
    finally:
        # What glibc itself goes up to, for the speed of all that comes.
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
        library.malloc_trim(0)
