"""A run of a command: what it was asked for, recorded beside its result, and what may be replaced.

Beside every result `OUT` stands `OUT.run.yaml` with the command's options, which `--config` takes
back. A result is replaced by the same command with the same options; by another only with --force.
"""

import difflib
import fcntl
import os
import reprlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer
import yaml

from c2r.cli.processes import is_first_process, is_restarted
from c2r.errors import InputError, one_line

Options = dict[str, Any]

_COMMAND = "command"
_NOT_RECORDED = ("config", "force", "quiet", "json")  # they do not change the result


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A command with the options that it runs with.

    Attributes:
        command: its name, `bench cluster` for example.
        options: by the names that a user gives them; those without a value are left out.
        out: where its result goes; None without one.
        force: whether another result may be replaced.
    """

    command: str
    options: Options
    out: Path | None
    force: bool

    @classmethod
    def of(cls, context: typer.Context, force: bool) -> "Run":
        """The run that a command line asks for."""
        names = _names(context)
        options = {
            names[name]: _plain(value)
            for name, value in context.params.items()
            if names.get(name, "config") not in _NOT_RECORDED and value not in (None, (), [])
        }
        out = context.params.get("out") or context.params.get("figure")
        run = cls(command=_command_of(context), options=options, out=out, force=force)
        # Started again, it resumes from what its first start has cleared the place for.
        return replace(run, force=False) if force and is_restarted() and run.is_repeat else run

    @property
    def is_repeat(self) -> bool:
        """Whether this run made what stands in its place."""
        if self.out is None:
            return False
        with suppress(InputError):
            return _read(record_of(self.out)) == {_COMMAND: self.command, **self.options}
        return False

    def save(self) -> None:
        """Writes the record beside the result, if there is one."""
        if self.out is not None and self.out.exists():
            self.write(record_of(self.out))

    def write(self, record: Path) -> None:
        """Writes the record."""
        from c2r.artifacts import write_text

        head = f"# c2r {version('c2r-moe')}; again: c2r {self.command} --config {record.name}\n"
        body = yaml.safe_dump(
            {_COMMAND: self.command, **self.options}, sort_keys=False, allow_unicode=True
        )
        write_text(record, head + body)


def record_of(out: Path) -> Path:
    """Where the record of a result is."""
    return Path(f"{out if out.name else out.absolute()}.run.yaml")  # "." has no name


_current: list[Run] = []
_locks: list[tuple[Run, int]] = []
"""Handles of the records of runs that are at work; a lock on one tells others so."""


@contextmanager
def running(run: Run) -> Iterator[None]:
    """Makes `run` the one that `check_output` asks, and records it when the block has ended."""
    _current.append(run)
    record = None if run.out is None else record_of(run.out)
    is_new = record is not None and not record.exists()
    try:
        yield
        if is_first_process():
            run.save()
    except BaseException:
        if record is not None and is_new and is_first_process() and not _exists(run.out):
            record.unlink(missing_ok=True)
        raise
    finally:
        _current.remove(run)
        for entry in [entry for entry in _locks if entry[0] is run]:
            _locks.remove(entry)
            os.close(entry[1])


def _lock(run: Run) -> None:
    """Tells others that the run is at work, as long as this process lives; see `is_running`."""
    if run.out is None:
        return
    with suppress(OSError):  # no record, or a disk that knows no locks
        handle = os.open(record_of(run.out), os.O_RDONLY)
        _locks.append((run, handle))
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_running(out: Path) -> bool | None:
    """Whether a command is at work on `out`; None where that cannot be known."""
    try:
        handle = os.open(record_of(out), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def is_forced() -> bool:
    """Whether the command that runs may replace what is there."""
    return bool(_current) and _current[-1].force


def record_now() -> None:
    """Records the command that runs before it has ended, beside a folder that it fills in steps."""
    if _current and is_first_process():
        _current[-1].save()
        _lock(_current[-1])


def check_inputs(out: Path | None, *inputs: Path | str | None) -> None:
    """Raises `InputError` if what is to be written is one of the inputs.

    Of a folder that is an input, a model's perhaps, no file is written over but what the command
    that runs has made there.
    """
    if out is None:
        return
    target = out.resolve()
    is_ours = bool(_current) and out == _current[-1].out and _current[-1].is_repeat
    for path in (Path(name) for name in inputs if name is not None):
        source = path.resolve()
        is_inside = path.is_dir() and out.exists() and source in target.parents
        if target == source or (is_inside and not is_ours):
            raise InputError(f"{out} is an input of this command; give another file to write")


def check_output(
    out: Path | None,
    *inputs: Path | str | None,
    resumes: bool = False,
    fills: bool = False,
    keeps: bool = False,
) -> None:
    """Raises `InputError` if what is to be written is an input, or another result is there.

    With --force a folder that is there is removed, if c2r wrote it, and unfinished work too.

    Args:
        out: the file or folder to write; None for none.
        inputs: what the command reads.
        resumes: whether the command resumes from what is there.
        fills: whether it adds to a folder; nothing is removed then.
        keeps: whether it leaves a folder as it is that the same command has finished.
    """
    check_inputs(out, *inputs)
    if out is None or not _current:
        return
    run = _current[-1]
    if run.force and not fills:
        _clear(out, resumes)
    if fills and (run.force or not out.is_dir()):
        return
    may_repeat = run.force or (run.is_repeat and (fills or keeps or not out.is_dir()))
    if not resumes and not may_repeat and _is_result(out):
        raise InputError(f"{out} exists; choose another, or replace it with --force")
    if is_first_process() and out == run.out:
        if not _exists(out):
            # Before the result: whoever is killed between can run the same command again.
            with suppress(InputError):  # told better when the result is written
                run.write(record_of(out))
        _lock(run)


def _exists(path: Path | None) -> bool:
    try:
        return path is not None and path.exists()
    except OSError:  # told better when it is written
        return False


def _is_result(out: Path) -> bool:
    try:
        return out.is_file() or (out.is_dir() and any(out.iterdir()))
    except OSError:  # told better when it is written
        return False


def _clear(out: Path, resumes: bool) -> None:
    """Removes what a forced run begins anew; a file that is only replaced stays until then."""
    if not is_first_process() or out.is_symlink():
        return
    if out.is_dir() and any(out.iterdir()):
        if not record_of(out).is_file():
            raise InputError(
                f"{out} is a folder that c2r has not written ({record_of(out).name} is not beside "
                "it); remove it yourself, or choose another"
            )
        shutil.rmtree(out)
    elif resumes and out.is_file():
        out.unlink()


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Takes the options in a file as defaults of the command; those of the command line win.

    Raises:
        InputError: the file is no record of this command, or names what is no option of it.
    """
    if path is None:
        return None
    found = _read(path)
    command = found.pop(_COMMAND, None)
    if command not in (None, _command_of(context)):
        raise InputError(
            f"{path} is of `c2r {one_line(command)}`, not of `c2r {_command_of(context)}`"
        )
    names = {spelled.replace("-", "_"): name for name, spelled in _names(context).items()}
    options = {str(key).replace("-", "_"): value for key, value in found.items()}
    unknown = [key for key in options if names.get(key, "config") in _NOT_RECORDED]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        hint = f"did you mean {near[0]}?" if near else f"see `c2r {_command_of(context)} --help`"
        raise InputError(
            f"{path} has what is no option of `c2r {_command_of(context)}`: "
            f"{one_line(', '.join(unknown))}; {hint}"
        )
    taken = {names[key]: value for key, value in options.items() if value is not None}
    context.default_map = {
        name: _given(path, name, value, context) for name, value in taken.items()
    }
    return path


def _given(path: Path, name: str, value: Any, context: typer.Context) -> Any:
    """A value of a file as the command line would give it."""
    parameter = next(entry for entry in context.command.params if entry.name == name)
    takes_several = getattr(parameter, "multiple", False) or parameter.nargs != 1
    items = value if isinstance(value, list) and takes_several else [value]
    if any(isinstance(item, Mapping | list | set) for item in items):
        raise InputError(
            f"{path}: {_names(context)[name]} takes one value; it has "
            f"{one_line(reprlib.repr(value))}"
        )
    if takes_several:
        return [str(item) for item in items]
    return value if isinstance(value, bool) else str(value)


def _read(path: Path) -> Options:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; give a .run.yaml") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no options; write one to a line, as `tokens: 4096`")
    return dict(found)


def _command_of(context: typer.Context) -> str:
    return context.command_path.partition(" ")[2]


def _names(context: typer.Context) -> dict[str, str]:
    """What a user calls each parameter, by its name in Python."""
    return {
        str(entry.name): max(entry.opts, key=len).lstrip("-") for entry in context.command.params
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
