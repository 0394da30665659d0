"""Batches of token ids from plain text.

Each text is cut into pieces, the pieces are shuffled by a seed and taken from the texts in turn, so
that even a sample of few tokens covers the whole of every text.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.errors import InputError
from c2r.text.files import Text

_PIECE_CHARACTERS = 8192

Batch = dict[str, Tensor]
"""`input_ids` and `attention_mask`, `[batch, seq_len]` int64 each."""


def split_texts(texts: Sequence[Text]) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    """The first halves, to calibrate on, and the second halves, to evaluate on.

    Raises:
        InputError: a text is too short to be split.
    """
    for text in texts:
        if len(text.content) < 2:
            raise InputError(f"{text.name} is too short to split into two halves; give more text")
    middles = [len(text.content) // 2 for text in texts]
    first = [Text(name=t.name, content=t.content[:m]) for t, m in zip(texts, middles, strict=True)]
    second = [Text(name=t.name, content=t.content[m:]) for t, m in zip(texts, middles, strict=True)]
    return tuple(first), tuple(second)


def token_batches(
    texts: Sequence[Text],
    tokenizer: Any,
    *,
    seq_len: int = 1024,
    batch_size: int = 4,
    num_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    """Batches of `batch_size` windows of `seq_len` tokens, `num_tokens` of them in all.

    Without `num_tokens`, all of the text. Each window begins as the tokenizer begins a text: many
    models are at a loss without the token that was first in all of their training. The last window
    may be padded; its mask is 0 there.

    Raises:
        InputError: a length is below 1, or leaves no room for text.
    """
    check_lengths(seq_len, batch_size, num_tokens)
    beginning = beginning_within(tokenizer, seq_len)
    stream = _token_stream(texts, tokenizer, seed)
    windows = _windows(stream, beginning, seq_len, num_tokens)
    rows: list[list[int]] = []
    for window in windows:
        rows.append(window)
        if len(rows) == batch_size:
            yield pad_batch(rows, None if batch_size == 1 else seq_len)
            rows = []
    if rows:
        yield pad_batch(rows, None if len(rows) == 1 else seq_len)


def check_lengths(seq_len: int, batch_size: int, num_tokens: int | None) -> None:
    """Raises `InputError` unless all are 1 or more."""
    if min(seq_len, batch_size, 1 if num_tokens is None else num_tokens) < 1:
        raise InputError(
            f"seq_len {seq_len}, batch_size {batch_size} and tokens {num_tokens} must be positive"
        )


def beginning_of(tokenizer: Any) -> list[int]:
    """The special tokens with which a tokenizer begins a text; none for many."""
    plain, whole = (
        list(tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"])
        for special in (False, True)
    )
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def beginning_within(tokenizer: Any, seq_len: int) -> list[int]:
    """As `beginning_of`. Raises `InputError` where windows of `seq_len` have no room for text."""
    beginning = beginning_of(tokenizer)
    if seq_len <= len(beginning):
        raise InputError(
            f"seq_len {seq_len} leaves no room for text: the tokenizer begins each window with "
            f"{len(beginning)} tokens of its own"
        )
    return beginning


def named_beginning(tokenizer: Any) -> dict[str, list[str]]:
    """What results tell of the tokens that windows begin with; nothing where there are none."""
    beginning = beginning_of(tokenizer)
    return {"begins_with": tokenizer.convert_ids_to_tokens(beginning)} if beginning else {}


def _token_stream(texts: Sequence[Text], tokenizer: Any, seed: int) -> Iterator[list[int]]:
    streams = [_shuffled_pieces(text, seed) for text in texts]
    while streams:
        remaining = []
        for stream in streams:
            piece = next(stream, None)
            if piece is not None:
                yield tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
                remaining.append(stream)
        streams = remaining


def _shuffled_pieces(text: Text, seed: int) -> Iterator[str]:
    starts = np.arange(0, len(text.content), _PIECE_CHARACTERS)
    for start in np.random.default_rng(seed).permutation(starts):
        yield text.content[start : start + _PIECE_CHARACTERS]


def _windows(
    stream: Iterator[list[int]], beginning: list[int], seq_len: int, num_tokens: int | None
) -> Iterator[list[int]]:
    left, room = num_tokens, seq_len - len(beginning)
    buffer: list[int] = []
    for piece in stream:
        buffer += piece
        while len(buffer) >= room and (left is None or left >= seq_len):
            yield beginning + buffer[:room]
            buffer = buffer[room:]
            left = None if left is None else left - seq_len
        if left is not None and left < seq_len and len(buffer) >= left - len(beginning):
            break
    last = buffer if left is None else buffer[: max(left - len(beginning), 0)]
    if last:
        yield beginning + last


def pad_batch(rows: Sequence[Sequence[int]], width: int | None = None) -> Batch:
    """Rows of token ids, filled up at their ends with 0 to `width`, or to the longest of them."""
    width = max(map(len, rows)) if width is None else width
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
