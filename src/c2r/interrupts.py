"""What ends a program: signals, limits of time and memory, and its parent's end."""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any


class Interrupt:
    """The signal that asked a program to end.

    Attributes:
        number: of the signal; None where none came.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def what(self) -> str:
        """What happened, in a word."""
        return "terminated" if self.number == signal.SIGTERM else "interrupted"

    @property
    def status(self) -> int:
        """The exit status that shells give a program that ends so: 130 or 143."""
        return 128 + (self.number or signal.SIGINT)

    def __call__(self, number: int, _: Any) -> None:
        """Notes the signal, and raises."""
        self.number = number
        raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Ctrl-C and SIGTERM, which schedulers send, raise `KeyboardInterrupt` in the block.

    Only the main thread can ask for it.
    """
    interrupt = Interrupt()
    with handling(interrupt):
        yield interrupt


_MEMORY_IN_USE = Path("/proc/self/statm")  # Linux has it; elsewhere memory has no limit


@contextmanager
def limits(*, seconds: float, num_bytes: int) -> Iterator[None]:
    """Raises in a block of Python that takes more: `TimeoutError`, or `MemoryError`.

    For what a file makes us compute, such as its templates. Only the main thread can ask for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} s")

    handler, memory = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        if _MEMORY_IN_USE.exists():
            in_use = int(_MEMORY_IN_USE.read_text().split()[0]) * resource.getpagesize()
            most = in_use + num_bytes
            if memory[0] == resource.RLIM_INFINITY or most < memory[0]:
                resource.setrlimit(resource.RLIMIT_AS, (most, memory[1]))
        yield
    except MemoryError:
        raise MemoryError(f"it takes more than {num_bytes >> 20:,} MiB of memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    """`handler` takes Ctrl-C and SIGTERM in the block; elsewhere than in the main thread none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def end_with_parent() -> None:
    """A process that multiprocessing started ends when its parent has ended, killed perhaps."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a child has one"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent's end", daemon=True).start()
