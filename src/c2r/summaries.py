"""Values that show themselves in a few lines, and in a notebook as a small table."""

from collections.abc import Mapping
from html import escape


class Summarised:
    """Shown by what `summary` tells, in place of all that it holds."""

    __slots__ = ()

    def summary(self) -> tuple[str, Mapping[str, str]]:
        """A title, and the figures by their names, as people read them."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """A line for the title, and one for each figure."""
        title, figures = self.summary()
        width = max(map(len, figures), default=0)
        return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in figures.items())])

    def _repr_html_(self) -> str:
        """The same as a table, which notebooks show."""
        title, figures = self.summary()
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in figures.items()
        )
        return f"<table><caption>{escape(title)}</caption>{rows}</table>"


def figure(value: object, form: str) -> str:
    """A number in a format of Python's, such as `.2f`; empty for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return format(value, form) if is_number else ""


def known(figures: Mapping[str, str]) -> dict[str, str]:
    """The figures that there are."""
    return {name: text for name, text in figures.items() if text}
