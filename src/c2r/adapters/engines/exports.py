"""Plans in the formats of engines, each read back before it counts as written."""

from dataclasses import dataclass
from pathlib import Path

from c2r.adapters.engines import megatron, sglang, tensorrt_llm, vllm, vllm_ascend
from c2r.adapters.engines.engine import Engine
from c2r.adapters.engines.slots import SlotMap, check_slots, plan_slots
from c2r.adapters.formats import ExportFormat
from c2r.artifacts import damaged_file, write_text
from c2r.errors import InputError
from c2r.plans import Plan

_MODULES = (sglang, vllm, tensorrt_llm, vllm_ascend, megatron)
_ENGINES: dict[str, Engine] = {module.ENGINE.name: module.ENGINE for module in _MODULES}


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
    write_text(path, engine.encode(slots, plan, num_layers))
    _check(engine, plan, slots, path)
    return Export(launch_line=engine.launch_line(slots, path), note=engine.note)


def check_export(plan: Plan, format_: str, path: Path) -> None:
    """Raises `InputError` unless the file at `path` places the experts as `plan` does."""
    _check(_engine(format_), plan, plan_slots(plan), path)


def _check(engine: Engine, plan: Plan, slots: SlotMap, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if engine.decode is None:
        if text != engine.encode(slots, plan, None):
            raise InputError(f"{path} does not say what the plan does; export it again")
        return
    with damaged_file(path):
        check_slots(engine.decode(text, slots), plan)


def _engine(name: str) -> Engine:
    if name not in _ENGINES:
        raise InputError(f"format {name!r} is unknown; choose {', '.join(ExportFormat)}")
    return _ENGINES[name]
