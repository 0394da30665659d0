"""Something under way, to be waited for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Pending(Generic[T]):
    """`wait()` gives the result, once."""

    wait: Callable[[], T]
