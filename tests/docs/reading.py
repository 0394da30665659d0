"""Paragraphs and sentences of a page, for the test of reading ease."""

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
_LINK_TARGET = re.compile(r"\]\([^)]*\)")
_NO_END = re.compile(r"\b(e\.g|i\.e|vs|et al)\.")
_END = re.compile(r"(?<=[.!?])[*_)\"”]*\s+(?=\S)")


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Line and source of each paragraph and list item; tables, code and formulas are left out."""
    is_table = False
    for token in _MARKDOWN.parse(text):
        is_table = token.type != "table_close" and (is_table or token.type == "table_open")
        is_prose = token.type == "inline" and not is_table
        if is_prose and token.map and not token.content.startswith(("$$", ":::", "![")):
            yield token.map[0] + 1, token.content


def sentences(paragraph: str) -> list[str]:
    """Its sentences. Code and formulas are one word each, and of a link only its words count."""
    text = _FORMULA.sub("formula", paragraph.replace("\n", " "))
    text = re.sub(r"`[^`]*`", "code", _LINK_TARGET.sub("]", text))
    return _END.split(_NO_END.sub(r"\1", text))


def num_words(sentence: str) -> int:
    """Its words; a sign alone is none."""
    return sum(any(map(str.isalnum, word)) for word in sentence.split())
