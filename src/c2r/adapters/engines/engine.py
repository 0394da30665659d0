"""What a module of this room tells of its engine: how plans are written, how traces are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from c2r.adapters.engines.records import BadRecords, Record
from c2r.adapters.engines.slots import SlotMap
from c2r.adapters.formats import ExportFormat, ImportFormat
from c2r.plans import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An engine that loads plans.

    Attributes:
        name: of its format.
        encode: the text of its file from a plan's slots, the plan, and the number of layers of the
            model, None where unknown.
        decode: the slots in such a text; the plan's slots tell what it does not. None where the
            file holds no placement.
        launch_line: the command that starts the engine with the file, from the slots and its path.
        note: when the plan makes a difference.
    """

    name: ExportFormat
    encode: Callable[[SlotMap, Plan, int | None], str]
    decode: Callable[[str, SlotMap], SlotMap] | None
    launch_line: Callable[[SlotMap, Path], str]
    note: str


class Part(NamedTuple):
    """What lies between two of the `size` bytes of a file; also of its rows, or its records."""

    start: int
    stop: int
    size: int

    def of(self, number: int) -> tuple[int, int]:
        """The first of so many rows or records that is in the part, and the first beyond it."""
        return number * self.start // self.size, number * self.stop // self.size


WHOLE = Part(0, 1, 1)


def _untold(_: Path) -> None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceFormat:
    """Files that tell which experts tokens chose.

    Attributes:
        name: of the format.
        pattern: the names of such files in a folder, as `Path.glob` takes it.
        read: the records in a part of a file; bad ones are reported. The parts of a file hold each
            of its records once.
        num_experts: E where something beside the file tells it, else None.
    """

    name: ImportFormat
    pattern: str
    read: Callable[[Path, BadRecords, Part], Iterator[Record]]
    num_experts: Callable[[Path], int | None] = _untold
