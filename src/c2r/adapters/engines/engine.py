"""What a module of this room tells of its engine: how it starts, loads plans and writes traces."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from c2r.adapters.engines.records import BadRecords, Record
from c2r.adapters.engines.slots import SlotMap
from c2r.adapters.formats import ExportFormat, ImportFormat
from c2r.plans import ClusterTopology, Plan

FIRST_NODE = "NODE0"
"""What commands for several nodes call the address of the first."""


class Command(NamedTuple):
    """A command line, and where it is given, such as `on node 0`."""

    where: str
    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What an engine is started with: a rank on each GPU.

    Attributes:
        model: folder or hub name of the checkpoint.
        topology: the ranks, and the nodes that they are on.
        placement: file that tells where experts go; None where they go in order.
        num_replicas: of all ranks, in a layer.
    """

    model: str
    topology: ClusterTopology
    placement: Path | None = None
    num_replicas: int = 0

    @property
    def quoted_model(self) -> str:
        """The model as a word of a command line."""
        return shlex.quote(self.model)


def on_each_node(
    topology: ClusterTopology, line: str, of_node: Callable[[int], str], rest: str = ""
) -> tuple[Command, ...]:
    """`line` and `rest`, and between them, where there are several nodes, what each is told."""
    if topology.num_nodes == 1:
        return (Command("", f"{line}{rest}"),)
    return tuple(
        Command(f"on node {node}", f"{line} {of_node(node)}{rest}")
        for node in range(topology.num_nodes)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An engine that loads plans.

    Attributes:
        name: of its format.
        encode: the text of its file from a plan's slots, the plan, and the number of layers of the
            model, None where unknown.
        decode: the slots in such a text; the plan's slots tell what it does not. None where the
            file holds no placement.
        release: that takes the commands.
        commands: that start it, one for each node where each has its own.
        loads_placement: whether that release loads the file; else its checkpoint is permuted.
        suffix: with which the file's name must end; empty for any.
        note: when the plan makes a difference.
    """

    name: ExportFormat
    encode: Callable[[SlotMap, Plan, int | None], str]
    decode: Callable[[str, SlotMap], SlotMap] | None
    release: str
    commands: Callable[[Start], tuple[Command, ...]]
    loads_placement: bool = True
    suffix: str = ""
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
