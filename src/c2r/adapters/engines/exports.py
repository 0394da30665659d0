"""Plans in the formats of engines, each read back before it counts as written."""

from dataclasses import dataclass
from pathlib import Path

from c2r.adapters.engines import megatron, sglang, tensorrt_llm, vllm, vllm_ascend
from c2r.adapters.engines.engine import Command, Engine, Start
from c2r.adapters.engines.slots import SlotMap, check_slots, plan_slots
from c2r.adapters.formats import ExportFormat
from c2r.artifacts import damaged_file, write_text
from c2r.errors import InputError, one_line
from c2r.plans import ClusterTopology, Plan

_MODULES = (sglang, vllm, tensorrt_llm, vllm_ascend, megatron)
_ENGINES: dict[str, Engine] = {module.ENGINE.name: module.ENGINE for module in _MODULES}


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A written file, and how an engine starts with it.

    Attributes:
        release: of the engine that takes the commands.
        commands: that start it.
        loads_placement: whether it loads the file; else the commands are for a permuted checkpoint.
        note: when the placement makes a difference.
    """

    release: str
    commands: tuple[Command, ...]
    loads_placement: bool
    note: str


def export_plan(
    plan: Plan,
    format_: str,
    path: str | Path,
    num_layers: int | None = None,
    model: str = "MODEL",
) -> Export:
    """Writes a plan for an engine, atomically.

    Args:
        plan: with router paths, from which the layers' numbers in the model follow.
        format_: the engine, one of `ExportFormat`.
        path: file to write.
        num_layers: layers of the model, for SGLang, which wants a row for each; None ends with
            the last MoE layer.
        model: what the commands call the checkpoint.

    Raises:
        PlanError: the engine cannot hold the plan, as with unequal slots.
        PlanMismatchError: the plan does not tell the numbers of its layers.
        InputError: the format is unknown, the engine wants another name, or the file cannot be
            written.
    """
    engine, path = _engine(format_), Path(path)
    if not path.name.endswith(engine.suffix):
        raise InputError(
            f"{engine.release} takes a file whose name ends in {engine.suffix}; write to "
            f"{path}{engine.suffix}"
        )
    slots = plan_slots(plan)
    write_text(path, engine.encode(slots, plan, num_layers))
    _check(engine, plan, slots, path)
    start = Start(
        model=model,
        topology=plan.topology,
        placement=path.absolute(),  # an engine may be started elsewhere
        num_replicas=slots.num_replicas,
    )
    return Export(
        release=engine.release,
        commands=engine.commands(start),
        loads_placement=engine.loads_placement,
        note=engine.note,
    )


def loads_placement(format_: str) -> bool:
    """Whether a release loads the file of a format. Raises `InputError` for an unknown one."""
    return _engine(format_).loads_placement


def commands_in_order(model: str, topology: ClusterTopology) -> dict[str, tuple[Command, ...]]:
    """How servers that place experts in order start on a permuted checkpoint, by their release."""
    start = Start(model=model, topology=topology)
    engines = (vllm.ENGINE, sglang.ENGINE)
    return {engine.release: engine.commands(start) for engine in engines}


def check_export(plan: Plan, format_: str, path: Path) -> None:
    """Raises `InputError` unless the file at `path` places the experts as `plan` does."""
    _check(_engine(format_), plan, plan_slots(plan), path)


def check_any_export(plan: Plan, path: Path) -> None:
    """As `check_export`, whichever engine's format the file has. Raises `InputError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; check the path") from None
    slots = plan_slots(plan)
    for engine in _ENGINES.values():
        if engine.decode is not None:
            try:
                with damaged_file(path):
                    found = engine.decode(text, slots)
            except InputError:
                continue
            check_slots(found, plan)
            return
    raise InputError(f"{path} is no placement that `c2r export` writes; export the plan again")


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
