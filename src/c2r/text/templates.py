"""Templates that come with files: they may fail, loop, or make much of little."""

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateError

from c2r.errors import InputError, one_line
from c2r.interrupts import limits

_MOST_SECONDS, _MOST_BYTES = 20.0, 1 << 30
_ERRORS = (
    TemplateError, TimeoutError, ZeroDivisionError, TypeError, ValueError, OverflowError,
    RecursionError, AttributeError, LookupError, MemoryError,
)  # fmt: skip
"""Of jinja, and what Python raises for a template that is not one of text."""


@contextmanager
def template_limits(what: str, advice: str) -> Iterator[None]:
    """A block that renders a template, within 20 seconds and 1 GiB of memory.

    Raises:
        InputError: it fails or takes more; `what` is refused for that reason, `advice` ends the
            message.
    """
    try:
        with limits(seconds=_MOST_SECONDS, num_bytes=_MOST_BYTES):
            yield
    except _ERRORS as error:
        raise InputError(f"{what} ({one_line(error)}); {advice}") from error
