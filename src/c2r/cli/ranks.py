"""The ranks of a command that torchrun started: together from the first line to the last."""

import _thread
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import note
from c2r.cli.processes import num_processes, process_rank, tell_torchrun
from c2r.errors import C2RError, CommunicationError

if TYPE_CHECKING:
    from c2r.parallel import Comm, Signs

TimeoutOption = Annotated[
    float,
    typer.Option(
        min=1.0, help="Seconds without a sign of life or an answer after which a rank is lost."
    ),
]
DEFAULT_TIMEOUT = 60.0

_SECONDS_TO_END = 4.0  # for a rank that hears of a lost one, to save its state


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """All ranks of a command; `comm` is None in one process."""

    comm: "Comm | None"

    def agree(self, facts: dict[str, Any]) -> None:
        """Raises `CommunicationError` on all ranks if `facts`, JSON data by name, differ."""
        if self.comm is not None:
            from c2r.parallel import agree

            agree(facts, self.comm)

    def note(self, message: str) -> None:
        """A line for the user's eyes, from the first rank."""
        if self.comm is None or self.comm.rank == 0:
            note(message)

    def meet(self, what: str) -> None:
        """Waits until all are here."""
        if self.comm is not None:
            self.comm.meet(what)


@contextmanager
def together(timeout: float, backend: Callable[[], str] | str | None = None) -> Iterator[Ranks]:
    """Joins the ranks before anything else, and tells all of an error of one.

    Args:
        timeout: seconds after which a rank that gives no sign of life is lost.
        backend: of torch's, or what chooses it; torch's choice for the machine where absent.

    Raises:
        CommunicationError: a rank does not come, or is lost.
        C2RError: the error of the first rank that has one, on all.
    """
    process_rank()  # an environment that makes no sense is told before torch is loaded
    if num_processes() == 1:
        yield Ranks(comm=None)
        return
    lost = _Lost()
    ranks, signs = _join(timeout, backend, lost)
    try:
        yield ranks
    except CommunicationError:
        raise
    except C2RError as error:
        raise type(error)(signs.leave(str(error))) from error
    except KeyboardInterrupt:
        line = lost.line or signs.interrupted()
        if line is None:
            raise
        raise CommunicationError(line) from None
    except Exception as error:
        signs.leave(f"ended with {type(error).__name__}")
        raise
    finally:
        lost.is_over = True
        signs.end()


def _join(
    timeout: float, backend: Callable[[], str] | str | None, lost: "_Lost"
) -> "tuple[Ranks, Signs]":
    from c2r.parallel import join_world, world_signs

    try:
        chosen = backend() if callable(backend) else backend
        comm = join_world(timeout, chosen, on_lost=lost.end)
    except KeyboardInterrupt:
        raise (CommunicationError(lost.line) if lost.line else KeyboardInterrupt) from None
    signs = world_signs()
    assert signs is not None, "the ranks were joined"
    return Ranks(comm=comm), signs


class _Lost:
    """Ends this rank when another is lost, even out of a call of torch that waits for it."""

    def __init__(self) -> None:
        self.line: str | None = None
        self.is_over = False

    def end(self, line: str) -> None:
        if self.is_over:
            return
        self.line = line
        _thread.interrupt_main(signal.SIGTERM)
        timer = threading.Timer(_SECONDS_TO_END, self._end_at_once)
        timer.daemon = True
        timer.start()

    def _end_at_once(self) -> None:
        if not self.is_over and self.line is not None:
            note(f"c2r: {self.line}")
            tell_torchrun(f"c2r: {self.line}")
            os._exit(2)
