"""README and the pages of the site are easy to read: short sentences, short paragraphs."""

from textwrap import wrap

import pytest

from tests.docs.blocks import PAGES
from tests.docs.reading import num_words, paragraphs, sentences

_MAX_WORDS = 30
_MAX_LINES = 6
_COLUMNS = 120
_RECORDS = {"docs/log.md", "docs/study.md", "docs/families.md"}  # kept as they were written down


@pytest.mark.parametrize("page", sorted(PAGES.keys() - _RECORDS))
def test_sentences_and_paragraphs_are_short(page):
    found = []
    for line, paragraph in paragraphs(PAGES[page].read_text(encoding="utf-8")):
        num_lines = len(wrap(paragraph, _COLUMNS))
        if num_lines > _MAX_LINES:
            found.append(f"line {line}: {num_lines} lines of {_COLUMNS} columns")
        found += [f"line {line}: {s}" for s in sentences(paragraph) if num_words(s) > _MAX_WORDS]
    assert found == []


def test_what_counts_as_a_paragraph():
    page = "# Title\n\nOne.\nTwo.\n\n| a |\n|---|\n| b. c |\n\n    code\n\n- item\n\n$$x$$\n"
    assert list(paragraphs(page)) == [(1, "Title"), (3, "One.\nTwo."), (12, "item")]


@pytest.mark.parametrize(
    ("paragraph", "words"),
    [
        ("It is 0.5 ms, i.e. short. Is it? Yes!", [6, 2, 1]),
        ("See [the two words](a/long_target.md) and `c2r plan --ranks 8`.", [6]),
        ("**A bold sentence.** With $D_t = 1 + 2$ in it.", [3, 4]),
        ("One - two\nthree (four.) Five.", [4, 1]),
    ],
)
def test_what_counts_as_a_word(paragraph, words):
    assert [num_words(sentence) for sentence in sentences(paragraph)] == words
