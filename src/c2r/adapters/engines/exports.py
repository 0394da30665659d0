"""Plans in the formats of engines, each read back before it counts as written."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from c2r.adapters.engines import megatron, sglang, tensorrt_llm, vllm, vllm_ascend
from c2r.adapters.engines.slots import SlotMap, check_slots, plan_slots
from c2r.artifacts import damaged_file, write_text
from c2r.errors import InputError
from c2r.plans import Plan


class ExportFormat(StrEnum):
    """Engines whose formats can be written."""

    SGLANG = "sglang"
    VLLM = "vllm"
    TENSORRT_LLM = "trtllm"
    VLLM_ASCEND = "vllm-ascend"
    MEGATRON = "megatron"


NOTES = {
    ExportFormat.SGLANG: (
        "the plan saves traffic with --moe-a2a-backend deepep or mooncake, which send a token once "
        "to each rank; with the default backend `none`, which gathers all tokens on all ranks, "
        "no placement changes it"
    ),
    ExportFormat.VLLM: (
        "this is the shape of open proposal 49572, which no released vLLM loads; c2r permute works "
        "with every vLLM. The plan saves traffic with the deepep backends; with the default "
        "allgather_reducescatter no placement changes it"
    ),
    ExportFormat.TENSORRT_LLM: (
        "the plan saves traffic with the all-to-all of WideEP under attention data parallelism; "
        "where tokens are gathered on all ranks no placement changes it"
    ),
    ExportFormat.VLLM_ASCEND: (
        "the plan saves traffic where MoE communication is an all-to-all; with all-gather no "
        "placement changes it"
    ),
    ExportFormat.MEGATRON: (
        "the flags replace C2R's lists by Megatron's own limit, whose groups are the ranks of the "
        "permuted checkpoint; leave them out to keep the model's function. Dispatcher `flex` sends "
        "a token once to each rank; `alltoall` sends it once for each expert and `allgather` to "
        "all, which no placement changes"
    ),
}


_LAUNCH: dict[ExportFormat, Callable[[SlotMap, Path], str]] = {
    ExportFormat.SGLANG: sglang.launch_line,
    ExportFormat.VLLM: vllm.launch_line,
    ExportFormat.TENSORRT_LLM: tensorrt_llm.launch_line,
    ExportFormat.VLLM_ASCEND: vllm_ascend.launch_line,
    ExportFormat.MEGATRON: megatron.launch_line,
}
_DECODE: dict[ExportFormat, Callable[[str, SlotMap], SlotMap]] = {
    ExportFormat.SGLANG: sglang.decode,
    ExportFormat.VLLM: vllm.decode,
    ExportFormat.TENSORRT_LLM: tensorrt_llm.decode,
    ExportFormat.VLLM_ASCEND: vllm_ascend.decode,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A written file: the command that loads it, and when it matters."""

    launch_line: str
    note: str


def export_plan(
    plan: Plan, format_: str, path: str | Path, num_layers: int | None = None
) -> Export:
    """Writes a plan for an engine, atomically.

    Args:
        plan: with router paths, from which the layers' numbers in the model follow.
        format_: the engine, one of `ExportFormat`.
        path: file to write.
        num_layers: layers of the model, for SGLang, which wants a row for each; None ends with
            the last MoE layer.

    Raises:
        PlanError: the engine cannot hold the plan, as with unequal slots.
        PlanMismatchError: the plan does not tell the numbers of its layers.
        InputError: the format is unknown, or the file cannot be written.
    """
    engine, path = _engine(format_), Path(path)
    slots = plan_slots(plan)
    write_text(path, _encode(plan, slots, engine, num_layers))
    check_export(plan, engine, path)
    return Export(launch_line=_LAUNCH[engine](slots, path), note=NOTES[engine])


def check_export(plan: Plan, format_: ExportFormat, path: Path) -> None:
    """Raises `InputError` unless the file at `path` places the experts as `plan` does."""
    slots = plan_slots(plan)
    text = path.read_text(encoding="utf-8")
    with damaged_file(path):
        if format_ is ExportFormat.MEGATRON:
            if megatron.decode(text) != megatron.decode(megatron.encode(plan, slots)):
                raise InputError(f"{path} does not have the plan's flags; export it again")
        else:
            check_slots(_DECODE[format_](text, slots), plan)


def _engine(name: str) -> ExportFormat:
    if name not in set(ExportFormat):
        raise InputError(f"format {name!r} is unknown; choose {', '.join(ExportFormat)}")
    return ExportFormat(name)


def _encode(plan: Plan, slots: SlotMap, format_: ExportFormat, num_layers: int | None) -> str:
    match format_:
        case ExportFormat.SGLANG:
            return sglang.encode(slots, num_layers)
        case ExportFormat.VLLM:
            return vllm.encode(slots)
        case ExportFormat.TENSORRT_LLM:
            return tensorrt_llm.encode(slots)
        case ExportFormat.VLLM_ASCEND:
            return vllm_ascend.encode(slots)
        case ExportFormat.MEGATRON:
            return megatron.encode(plan, slots)
