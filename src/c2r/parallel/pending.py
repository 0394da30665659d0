"""Something under way, to be waited for."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A result that `wait()` gives; `arrive` makes it, and is called once."""

    def __init__(self, arrive: Callable[[], T]) -> None:
        self._arrive: Callable[[], T] | None = arrive
        self._result: list[T] = []

    @classmethod
    def of(cls, result: T) -> "Pending[T]":
        """A result that is there already."""
        pending = cls(lambda: result)
        pending.wait()
        return pending

    def wait(self) -> T:
        """The result; waits for it the first time."""
        if self._arrive is not None:
            self._result, self._arrive = [self._arrive()], None
        return self._result[0]
