"""Commands that start engines, as they are told to the user."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from c2r.cli.console import note

if TYPE_CHECKING:
    from c2r.adapters.engines import Command


def whole_path(model: str) -> str:
    """The path of a folder that is here, which an engine may be started away from; else a name."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def tell_commands(release: str, commands: "Sequence[Command]") -> None:
    """What starts a release of an engine: lines that can be copied, and where each is given."""
    from c2r.adapters.engines import FIRST_NODE

    said = f"start {release} with it"
    if commands[0].where:
        said += "; every node needs folder and file at the same path"
    if FIRST_NODE in commands[0].line:
        said += f", and {FIRST_NODE} is the address of node 0"
    note(f"{said}:")
    for where, line in commands:
        if where:
            note(f"  {where}:")
        note(f"    {line}")
