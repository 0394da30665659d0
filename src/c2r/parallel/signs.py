"""Signs of life that ranks give each other beside their exchanges, so that the lost one is named.

A thread of every rank writes a sign to the store at which the ranks met, twice a second, and reads
those of the others. Who computes for long goes on giving signs; who was killed or stopped does not.
Nothing but this thread touches the store, for calls of a store that hangs do not return.
"""

import atexit
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch.distributed as dist

from c2r.errors import CommunicationError

DEFAULT_TIMEOUT = 60.0
_SECONDS_BETWEEN_SIGNS = 0.5
_SECONDS_BETWEEN_LOOKS = 0.02  # while somebody is waited for
_world: "Signs | None" = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """What a rank tells of itself.

    Attributes:
        number: of the signs so far.
        num_meetings: how often it waited for all others.
        failed_in: the exchange that failed; empty where none did.
        words: its error; empty where it has none.
        is_ending: it was interrupted, or is through.
    """

    number: int = 0
    num_meetings: int = 0
    failed_in: str = ""
    words: str = ""
    is_ending: bool = False

    @property
    def explains_itself(self) -> bool:
        """Whether it says why it does not answer."""
        return bool(self.failed_in or self.words or self.is_ending)


class Signs:
    """The signs of all ranks, seen from one.

    Args:
        store: where the ranks met; a connection of its own.
        rank: of this process.
        size: ranks in all.
        timeout: seconds without a sign after which a rank is lost.
        is_kept_by_first: whether rank 0 keeps the store, rather than torchrun.
    """

    def __init__(
        self, store: Any, rank: int, size: int, timeout: float, *, is_kept_by_first: bool
    ) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.on_lost: Callable[[str], None] = lambda _: None
        """Called once, in the thread, with a line about a rank that gave no sign in time."""
        self._store = store
        self._keeper = 0 if is_kept_by_first else None
        self._own = Sign()
        self._others: dict[int, Sign] = {}
        now = time.monotonic()
        self._moved = {other: now for other in range(size) if other != rank}
        self._looked = now
        self._store_is_gone = False
        self._is_waited_for = False
        self._wake = threading.Event()
        self._changes = threading.Lock()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=target, name="signs of life", daemon=True)
            for target in (self._live, self._watch)
        ]
        for thread in self._threads:
            thread.start()
        # A thread that comes back from C++ into a Python that ends would abort the process.
        atexit.register(self._close)

    def meet(self, what: str) -> None:
        """Waits until all ranks are here, for as long as they give signs of life.

        Raises:
            CommunicationError: a rank gave none within the timeout, or ended with an error.
        """
        number = self._own.num_meetings + 1
        self._tell(num_meetings=number, failed_in="")

        def behind() -> list[int]:
            return [r for r in self._moved if self._sign(r).num_meetings < number]

        def is_decided() -> bool:
            return not behind() or self.first_words() is not None or bool(self._lost(behind()))

        self._wait(is_decided, None)
        absent = behind()
        words = self.first_words()
        if absent and words is not None:
            raise CommunicationError(words)
        if absent:
            told = self._told(self._lost(absent), f"did not come to {what}")
            self.end()
            raise CommunicationError(told)

    def missing(self, members: list[int], failed_in: str, seconds: float) -> list[int]:
        """Who does not answer in an exchange that failed: the lost ranks, else the silent members.

        Waits at most so many seconds for the others to fail too, or to end with an error.
        """
        self._tell(failed_in=failed_in)
        lost = self._lost_within(seconds, silence=0.8)
        return lost or [rank for rank in self._unexplained() if rank in members]

    def leave(self, words: str, seconds: float = 1.5) -> str:
        """Tells the others this rank's error; gives the error of the first rank that has one."""
        self._tell(words=words)
        time.sleep(seconds)  # every rank looks twice a second
        return self.first_words() or f"rank {self.rank}: {words}"

    def end(self) -> None:
        """Tells the others that this rank ends, so that none takes it for lost.

        Who keeps the store stays until the others have seen that, and who is lost, for themselves.
        """
        if self._own.is_ending:
            return
        self._tell(is_ending=True)
        time.sleep(4 * _SECONDS_BETWEEN_SIGNS if self.rank == self._keeper else 0.1)

    def interrupted(self, seconds: float = 3.0) -> str | None:
        """Tells the others of an interrupt; gives a line where it came because a rank was lost.

        torchrun interrupts all ranks when one has failed or died, a user does so of himself.
        """
        self._tell(is_ending=True)
        lost = self._lost_within(seconds, silence=0.7)
        return self.first_words() or (self._told(lost, "died") if lost else None)

    def _unexplained(self) -> list[int]:
        return [rank for rank in self._moved if not self._sign(rank).explains_itself]

    def _lost_within(self, seconds: float, silence: float) -> list[int]:
        """Who gives no sign and no reason, once all such are silent for a share of the seconds.

        Earlier where a rank has told an error.
        """

        def is_decided() -> bool:
            silent = [self._silence(rank) > silence * seconds for rank in self._unexplained()]
            return all(silent) or self.first_words() is not None

        self._wait(is_decided, seconds)
        return [rank for rank in self._unexplained() if self._silence(rank) > 0.4 * seconds]

    def first_words(self) -> str | None:
        """The error of the first rank that has told one."""
        signs = {**self._others, self.rank: self._own}
        told = {rank: sign.words for rank, sign in signs.items() if sign.words}
        return f"rank {min(told)}: {told[min(told)]}" if told else None

    def _sign(self, rank: int) -> Sign:
        return self._others.get(rank, Sign())

    def _silence(self, rank: int) -> float:
        """Seconds since a rank's last sign, as far as can be known."""
        if rank == self._keeper:
            return self.timeout + 1 if self._store_is_gone else time.monotonic() - self._moved[rank]
        return self._looked - self._moved[rank]

    def _lost(self, ranks: list[int]) -> list[int]:
        return [rank for rank in ranks if self._silence(rank) > self.timeout]

    def _told(self, ranks: list[int], what: str) -> str:
        who = f"rank {', '.join(map(str, ranks))}"
        return (
            f"{who} {what} (no sign of life; timeout {self.timeout:g} s); look at the output of "
            f"{who}"
        )

    def _tell(self, **changes: Any) -> None:
        with self._changes:
            self._own = replace(self._own, **changes)
        self._wake.set()

    def _wait(self, is_decided: Callable[[], bool], seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        self._is_waited_for = True
        self._wake.set()
        try:
            while not is_decided() and (deadline is None or time.monotonic() < deadline):
                time.sleep(_SECONDS_BETWEEN_LOOKS / 2)
        finally:
            self._is_waited_for = False

    def _live(self) -> None:
        try:
            while not self._is_closed:
                self._look()
                pause = _SECONDS_BETWEEN_LOOKS if self._is_waited_for else _SECONDS_BETWEEN_SIGNS
                self._wake.wait(pause)
        except RuntimeError:  # who kept the store has ended
            self._store_is_gone = True

    def _close(self) -> None:
        self._is_closed = True
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=2 * _SECONDS_BETWEEN_SIGNS)  # no longer: the store may hang

    def _look(self) -> None:
        self._tell(number=self._own.number + 1)
        self._wake.clear()
        self._store.set(_key(self.rank), json.dumps(asdict(self._own)))
        for other in self._moved:
            if other in self._others or self._store.check([_key(other)]):
                sign = Sign(**json.loads(self._store.get(_key(other))))
                if sign != self._others.get(other):
                    self._others[other] = sign
                    self._moved[other] = time.monotonic()
        self._looked = time.monotonic()

    def _watch(self) -> None:
        """Tells `on_lost` of a rank that is lost without a word, unless this one waits for it."""
        while not self._is_closed:
            time.sleep(_SECONDS_BETWEEN_SIGNS)
            lost = [r for r in self._lost(list(self._moved)) if not self._sign(r).explains_itself]
            if lost and not (self._own.explains_itself or self._is_waited_for):
                self.on_lost(self._told(lost, "is lost"))
                return


def _key(rank: int) -> str:
    return f"c2r/sign/{rank}"


def world_signs() -> Signs | None:
    """The signs of all processes; None where `begin_signs` was not called."""
    return _world


def begin_signs(
    store: Any,
    rank: int,
    size: int,
    timeout: float,
    on_lost: Callable[[str], None] | None = None,
) -> Signs:
    """Begins to give and read signs at the store where all processes met."""
    global _world
    is_kept_by_first = not dist.is_torchelastic_launched()
    _world = Signs(store, rank, size, timeout, is_kept_by_first=is_kept_by_first)
    _world.on_lost = on_lost or _world.on_lost
    return _world
