"""Text files, and files of one JSON object per line."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2r.errors import InputError, one_line


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A named piece of text."""

    name: str
    content: str

    @property
    def digest(self) -> str:
        """Identifies the content."""
        return hashlib.sha256(self.content.encode()).hexdigest()[:16]


def read_texts(paths: Sequence[Path]) -> tuple[Text, ...]:
    """The files' contents, without a byte order mark; lines end with a line feed alone.

    Raises:
        InputError: a file is missing, empty, or not UTF-8.
    """
    return tuple(_read_text(path) for path in paths)


def _read_text(path: Path) -> Text:
    try:
        content = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise InputError(f"cannot read text {path}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it, "
            f"for example with `iconv -t utf-8`"
        ) from None
    if not content.strip():
        raise InputError(f"{path} is empty; give a file with text")
    return Text(name=path.name, content=content)


def json_lines(text: Text) -> Iterator[tuple[dict[str, Any], str]]:
    """Each JSON object of a text that holds one per line, and the words for its line in errors.

    Blank lines are passed over.

    Raises:
        InputError: a line is not a JSON object.
    """
    for number, line in enumerate(text.content.split("\n"), start=1):
        if line.strip():
            source = f"line {number} of {text.name}"
            yield _json_object(line, source), source


def _json_object(line: str, source: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{source} holds half of a surrogate pair (\\u{ord(error.object[error.start]):04x}), "
            "which is no character; write the line again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{source} is not JSON ({_problem(error)}); give one JSON object per line"
        ) from None
    if not isinstance(record, dict):
        found = type(record).__name__
        raise InputError(f"{source} holds a {found}; give one JSON object per line")
    return record


def _problem(error: Exception) -> str:
    """What is wrong with a line, and where in it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.colno}"
    return one_line(error)
