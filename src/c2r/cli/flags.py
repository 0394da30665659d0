"""Arguments of the library as commands take them, and as errors name them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from c2r.errors import C2RError, InputError


def chunks_of(text: str) -> int | Literal["auto"]:
    """What `--chunks` says. Raises `InputError` where it is neither a number from 1 nor auto."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--chunks {text}: write a number from 1, or auto")
    return int(text)


@contextmanager
def naming_flags(**flags: str) -> Iterator[None]:
    """Adds its flag to an error from the block that names an argument of the library.

    `naming_flags(top_k="--top-k")` turns `top_k=9 does not fit` into
    `top_k=9 does not fit (top_k is --top-k)`.
    """
    try:
        yield
    except C2RError as error:
        told = [f"{name} is {flag}" for name, flag in flags.items() if f"{name}=" in str(error)]
        if not told:
            raise
        raise type(error)(f"{error} ({', '.join(told)})") from None
