"""Turns files of text and of instructions into windows of token ids to train on.

A piece is one conversation, or one stretch of a plain text. A window is what the model is given: a
piece, or several packed one after the other, which do not see each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from c2r.errors import InputError
from c2r.measuring import NO_LOSS
from c2r.text import Passage, PassageReader, beginning_within, check_answers

_NUM_OPEN = 1024
"""Latest windows that a piece may still join. All of them would make packing quadratic; older ones
mostly have room for the shortest pieces only. Chosen by hand."""
_FIELDS = ("input_ids", "labels", "position_ids")

Window = dict[str, Tensor]
"""`input_ids`, `labels` and `position_ids`, `[tokens]` int64 each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """How files become windows.

    Attributes:
        seq_len: the most tokens of a window.
        overlong: what becomes of longer conversations, `"truncate"` or `"drop"`; plain text is cut
            into pieces of `seq_len` tokens instead.
        packing: whether several pieces share one window.
        seed: draws their order.
        answers: which answers of a conversation carry loss, `"all"` or the `"last"`.

    Raises:
        InputError: an unknown `overlong` or `answers`, or windows of fewer than 2 tokens.
    """

    seq_len: int = 2048
    overlong: str = "truncate"
    packing: bool = True
    seed: int = 0
    answers: str = "all"

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.overlong not in ("truncate", "drop"):
            raise InputError(f"overlong is {self.overlong!r}; choose truncate or drop")
        check_answers(self.answers)
        if self.seq_len < 2:
            raise InputError(f"seq_len {self.seq_len} leaves no token to predict; give 2 or more")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingData:
    """What a model is trained on, in the order of training.

    Attributes:
        windows: `labels` are the ids that carry loss, -100 elsewhere and at the first token of
            every piece, which has none before it to be predicted from; `position_ids` begin at 0
            in every piece.
        num_pieces: pieces that the files gave and the windows hold.
        num_overlong: conversations longer than a window, truncated or dropped as asked.
        num_skipped: conversations, and ends of text, without a token to learn: the answer is empty
            or lies beyond the limit.
        unused_fields: fields of messages that the chat template does not use.
    """

    windows: tuple[Window, ...]
    num_pieces: int
    num_overlong: int
    num_skipped: int
    unused_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One conversation or stretch of text before packing: token ids, and for each its label."""

    ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ids)

    def is_learnable(self) -> bool:
        """Whether any token carries loss."""
        return any(label != NO_LOSS for label in self.labels)

    def truncate(self, length: int) -> "Piece":
        """The first `length` tokens."""
        return Piece(self.ids[:length], self.labels[:length])


def read_windows(paths: Sequence[Path], tokenizer: Any, settings: DataSettings) -> TrainingData:
    """The training data in files; equal files, tokenizer and settings give equal data.

    Every token of plain text carries loss, of conversations only the answers. `PassageReader` tells
    what files hold.

    Packed pieces do not attend to each other in a transformers model that is given `position_ids`
    and `use_cache=False`, and no `attention_mask`: where positions restart, so does its mask.
    With a cache it does not, and FlashAttention sees it in batches of one row only.

    Args:
        paths: files, or names of data sets.
        tokenizer: a fast one.
        settings: how files become windows.

    Raises:
        InputError: a file cannot be read or is of no known kind, a line cannot be used, or no
            piece is left.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} does not tell which characters a token covers; give a "
            "model folder with a tokenizer.json"
        )
    reader = PassageReader(tokenizer, settings.answers)
    found = [
        piece
        for passage in reader.read([Path(path) for path in paths])
        for piece in _pieces(passage, tokenizer, settings)
    ]
    is_overlong = [len(piece) > settings.seq_len for piece in found]
    kept = [
        piece.truncate(settings.seq_len)
        for piece, is_long in zip(found, is_overlong, strict=True)
        if not (is_long and settings.overlong == "drop")
    ]
    pieces = [piece for piece in kept if piece.is_learnable()]
    num_overlong, num_skipped = sum(is_overlong), len(kept) - len(pieces)
    if not pieces:
        raise InputError(
            f"no usable example among {len(found)}: {num_overlong} are longer than "
            f"{settings.seq_len} tokens, {num_skipped} have nothing to learn within them; give "
            "more data, or longer windows"
        )
    order = np.random.default_rng(settings.seed).permutation(len(pieces))
    shuffled = [pieces[index] for index in order]
    packed = pack(shuffled, settings.seq_len) if settings.packing else [[p] for p in shuffled]
    return TrainingData(
        windows=tuple(_join(group) for group in packed),
        num_pieces=len(pieces),
        num_overlong=num_overlong,
        num_skipped=num_skipped,
        unused_fields=tuple(sorted(reader.unused)),
    )


def pack(pieces: Sequence[Piece], seq_len: int) -> list[list[Piece]]:
    """The pieces, each whole in the first of the latest windows of `seq_len` tokens with room."""
    windows: list[list[Piece]] = []
    room = np.zeros(len(pieces), dtype=np.int64)
    for piece in pieces:
        first = max(len(windows) - _NUM_OPEN, 0)
        fits = room[first : len(windows)] >= len(piece)
        index = first + int(fits.argmax()) if fits.any() else len(windows)
        if index == len(windows):
            windows.append([])
            room[index] = seq_len
        windows[index].append(piece)
        room[index] -= len(piece)
    return windows


def collate(windows: Sequence[Window]) -> Window:
    """A batch `[windows, longest]`; its padding carries no loss, and nothing before attends to it.

    `attention_mask` tells padding, 0, from tokens. A model must not be given it: with one, packed
    pieces would attend to each other.
    """
    lengths = torch.tensor([len(window["input_ids"]) for window in windows])
    width = int(lengths.max())

    def pad(name: str, filler: int) -> Tensor:
        rows = [window[name] for window in windows]
        return torch.stack([F.pad(row, (0, width - len(row)), value=filler) for row in rows])

    return {
        "input_ids": pad("input_ids", 0),  # any id: causal attention hides what follows
        "labels": pad("labels", NO_LOSS),
        "position_ids": pad("position_ids", 0),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
    }


def _pieces(passage: Passage, tokenizer: Any, settings: DataSettings) -> Iterator[Piece]:
    """The pieces of a passage: a conversation of any length, or plain text cut at `seq_len`.

    Of plain text each begins as the tokenizer begins a text, as in profiling and measuring.
    """
    if passage.answers is not None:
        yield _piece(passage.text, passage.answers, tokenizer)
        return
    beginning = beginning_within(tokenizer, settings.seq_len)
    ids = tokenizer(passage.text, add_special_tokens=False, verbose=False)["input_ids"]
    room = settings.seq_len - len(beginning)
    for start in range(0, len(ids), room):
        block = beginning + ids[start : start + room]
        yield Piece(block, [NO_LOSS, *block[1:]])


def _piece(text: str, answers: Sequence[tuple[int, int]], tokenizer: Any) -> Piece:
    """The tokens of `text`; those that begin in an answer, given as `[start, end)`, carry loss."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # Tokenized as a whole, as the model will meet it: apart, tokens at the seams would be others.
    ids, labels = encoded["input_ids"], [NO_LOSS] * len(encoded["input_ids"])
    for index, (start, _) in enumerate(encoded["offset_mapping"]):
        if index and any(low <= start < high for low, high in answers):
            labels[index] = ids[index]
    return Piece(ids, labels)


def _join(pieces: Sequence[Piece]) -> Window:
    columns = (
        [token for piece in pieces for token in piece.ids],
        [label for piece in pieces for label in piece.labels],
        [position for piece in pieces for position in range(len(piece))],
    )
    return {name: torch.tensor(column) for name, column in zip(_FIELDS, columns, strict=True)}
