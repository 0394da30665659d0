"""What a command calls the arguments of the library, in errors that name them."""

from collections.abc import Iterator
from contextlib import contextmanager

from c2r.errors import C2RError


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
