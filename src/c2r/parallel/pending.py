"""A result that is computed once, when it is first asked for."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A lazy result: the first `wait()` calls `arrive` and keeps what it gives.

    Work that runs meanwhile, such as an exchange, is started before; `arrive` waits for it. Once it
    has run it is let go, and with it the tensors that it holds.
    """

    def __init__(self, arrive: Callable[[], T]) -> None:
        self._arrive: Callable[[], T] | None = arrive
        self._result: list[T] = []  # empty or one: the result itself may be None

    @classmethod
    def of(cls, result: T) -> "Pending[T]":
        """A result that is known already."""
        pending = cls(lambda: result)
        pending.wait()
        return pending

    def wait(self) -> T:
        """The result; computes it the first time."""
        if self._arrive is not None:
            self._result, self._arrive = [self._arrive()], None
        return self._result[0]
