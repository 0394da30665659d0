"""What `mkdocs.yml` adds to its pages: help texts of the command line, mathematics, the keyboard.

Formulas become MathML when the site is built, so that a page shows them without a script or the
network.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from latex2mathml.converter import convert
from typer.main import get_command

from c2r.cli import app, run_command

_COMMANDS = "<!-- commands -->"
_CODE = re.compile(r"(<pre\b[^>]*>(?:<span></span>)?<code\b)")
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', re.DOTALL
)  # as pymdownx.arithmatex leaves it for a script


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the help of every command in the place of `<!-- commands -->`."""
    return markdown.replace(_COMMANDS, "\n".join(_describe_commands(get_command(app))))


def on_page_content(content: str, **_: Any) -> str:
    """Renders formulas, and lets the keyboard scroll tables and code."""
    content = _CODE.sub(r'\1 tabindex="0"', _FORMULA.sub(_render, content))
    return content.replace("<table>", '<table tabindex="0">')


def on_post_page(output: str, **_: Any) -> str:
    """Names the dialog that the theme leaves without a name."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def _describe_commands(group: Any, *path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        words = [*path, name]
        if hasattr(command, "commands"):
            yield from _describe_commands(command, *words)
            continue
        output = io.StringIO()
        with redirect_stdout(output):
            run_command([*words, "--help"])
        yield f"## c2r {' '.join(words)}\n\n```text\n{output.getvalue().strip()}\n```\n"


def _render(found: re.Match[str]) -> str:
    display = "inline" if found[1] == "span" else "block"
    return str(convert(html.unescape(found[2]), display=display))
