"""Traces in shares of about as many bytes, counted side by side by processes."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from c2r.adapters.engines.engine import Part
from c2r.errors import InputError
from c2r.interrupts import end_with_parent

T = TypeVar("T")

_SHARE_BYTES = 16 << 20  # at least: a process takes as long to start as this to be counted
_MOST_SHARES = 64  # the counts of each come to this process and are merged


class Share(NamedTuple):
    """Parts of files, and the number of the share."""

    number: int
    parts: list[tuple[Path, Part]]

    @property
    def num_bytes(self) -> int:
        """Bytes of its parts."""
        return sum(part.stop - part.start for _, part in self.parts)


def divide(files: Sequence[Path]) -> list[Share]:
    """The parts of all files, in shares. They do not depend on the number of processes.

    So the counts are the same on any machine, where they are of a sample too.
    """
    sizes = [max(_size(path), 1) for path in files]
    total = sum(sizes)
    number = min(-(-total // _SHARE_BYTES), _MOST_SHARES)
    edges = [-(-total * share // number) for share in range(number + 1)]
    shares = [Share(share, []) for share in range(number)]
    begin = 0
    for path, size in zip(files, sizes, strict=True):
        end = begin + size
        for share in range(begin * number // total, (end - 1) * number // total + 1):
            start, stop = max(edges[share], begin) - begin, min(edges[share + 1], end) - begin
            shares[share].parts.append((path, Part(start, stop, size)))
        begin = end
    return shares


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # whoever reads it tells
        return 0


def counted(
    count: Callable[[Share], T], shares: Sequence[Share], num_workers: int
) -> Generator[T, None, None]:
    """What `count` makes of each share, in order, by so many processes.

    Few results wait to be taken: memory does not grow with the shares.
    """
    if num_workers == 1:
        yield from map(count, shares)
        return
    waiting: deque[Future[T]] = deque()
    with _workers(num_workers) as pool:
        for share in shares:
            # Not `pool.map`: it cancels what an interrupt leaves, and then the pool's thread fails.
            waiting.append(pool.submit(count, share))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that do not outlive the block, or this process."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, initializer=_begin_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise InputError(
                "a process that read files was killed, perhaps for want of memory; import fewer "
                "files at once"
            ) from None
        except BaseException:  # nobody waits for what they are at
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise


def _begin_worker() -> None:
    """A worker leaves interrupts to its parent, and ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
