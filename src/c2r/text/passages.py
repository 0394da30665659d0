"""Data files of any kind as passages: text, and which of it an assistant said."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from c2r.errors import InputError
from c2r.text.answers import Span, render, unused_fields
from c2r.text.batches import Batch, check_lengths, pad_batch
from c2r.text.conversations import conversation_of, plain_text_of
from c2r.text.files import read_texts
from c2r.text.records import Row, read_records

_ANSWERS = ("all", "last")


def check_answers(answers: str) -> None:
    """Raises `InputError` unless it says which answers of a conversation are meant."""
    if answers not in _ANSWERS:
        raise InputError(f"answers is {answers!r}; choose {' or '.join(_ANSWERS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A stretch of text.

    Attributes:
        text: with the tokens that a chat template writes.
        answers: the `[start, end)` characters of an assistant's answers; None for plain text.
        source: its file and place, for errors.
    """

    text: str
    answers: Sequence[Span] | None
    source: str


@dataclass(slots=True)
class PassageReader:
    """Reads data files; `unused` collects the fields of messages that the template ignores.

    Attributes:
        tokenizer: its chat template renders conversations.
        answers: `all` of a conversation, or its `last`.
        seed: draws the order of the records of a file; None keeps it.
        unused: fields of messages that changed nothing.

    Raises:
        InputError: `answers` is unknown.
    """

    tokenizer: Any
    answers: str = "all"
    seed: int | None = None
    unused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Checks the choice."""
        check_answers(self.answers)

    def read(self, paths: Sequence[Path]) -> Iterator[Passage]:
        """The passages of all files, one file after the other.

        A `.txt` file is one passage. Others hold records, each a passage: a conversation, as
        `conversation_of` takes it, or `text`. `read_records` tells the kinds of files.

        Raises:
            InputError: a file cannot be read, or a record cannot be used; by file and line.
        """
        for path in paths:
            if path.suffix == ".txt":
                (text,) = read_texts([path])
                yield Passage(text=text.content, answers=None, source=text.name)
                continue
            rows = read_records(path)
            order: Sequence[int] = range(len(rows))
            if self.seed is not None:
                order = [int(i) for i in np.random.default_rng(self.seed).permutation(len(rows))]
            yield from (self._passage(rows[index]) for index in order)

    def _passage(self, row: Row) -> Passage:
        record, source = row
        plain = plain_text_of(record)
        if plain is not None:
            return Passage(text=plain, answers=None, source=source)
        conversation = conversation_of(record, source)
        self.unused |= unused_fields(conversation, self.tokenizer)
        last_only = self.answers == "last"
        text, answers = render(conversation, self.tokenizer, last_only=last_only)
        return Passage(text=text, answers=answers, source=source)


def passage_batches(
    passages: Iterator[Passage],
    tokenizer: Any,
    *,
    seq_len: int = 1024,
    batch_size: int = 4,
    num_tokens: int | None = None,
) -> Iterator[Batch]:
    """Batches of `batch_size` rows, `num_tokens` tokens in all; a row is of one passage.

    Longer passages are cut into rows of `seq_len` tokens; shorter rows are padded at their end to
    the longest of the batch, with mask 0.

    Raises:
        InputError: a length is below 1, or a passage cannot be read.
    """
    check_lengths(seq_len, batch_size, num_tokens)
    rows: list[list[int]] = []
    left = num_tokens
    for row in _rows(passages, tokenizer, seq_len):
        rows.append(row[:left])
        left = None if left is None else left - len(rows[-1])
        if len(rows) == batch_size or left == 0:
            yield pad_batch(rows)
            rows = []
        if left == 0:
            return
    if rows:
        yield pad_batch(rows)


def _rows(passages: Iterator[Passage], tokenizer: Any, seq_len: int) -> Iterator[list[int]]:
    for passage in passages:
        ids = tokenizer(passage.text, add_special_tokens=False, verbose=False)["input_ids"]
        yield from (ids[start : start + seq_len] for start in range(0, len(ids), seq_len))
