"""Templates that come with files: they may fail, loop, or make much of little."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import SandboxedEnvironment

from c2r.errors import InputError, one_line
from c2r.interrupts import limits

_MOST_SECONDS, _MOST_BYTES = 20.0, 1 << 30
_MOST_BITS = 10_000  # of a whole number: to compute with millions of digits nothing interrupts
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
        with _small_numbers(), limits(seconds=_MOST_SECONDS, num_bytes=_MOST_BYTES):
            yield
    except _ERRORS as error:
        raise InputError(f"{what} ({one_line(error)}); {advice}") from error


@contextmanager
def _small_numbers() -> Iterator[None]:
    """Products and powers in jinja's sandbox raise `OverflowError` where they grow large."""
    sandbox: Any = SandboxedEnvironment
    before = sandbox.intercepted_binops, sandbox.default_binop_table
    sandbox.intercepted_binops = before[0] | HELD_OPERATORS.keys()
    sandbox.default_binop_table = before[1] | HELD_OPERATORS
    try:
        yield
    finally:
        sandbox.intercepted_binops, sandbox.default_binop_table = before


def _times(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return operator.mul(left, right)


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)
    return operator.pow(left, right)


def _check_bits(number: int) -> None:
    if number > _MOST_BITS:
        raise OverflowError("a number in it grows too large")


HELD_OPERATORS = {"*": _times, "**": _power}
"""Of a sandbox that computes with small numbers only."""
