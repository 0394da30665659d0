"""Text files and conversations in, batches of token ids out."""

from c2r.text.batches import (
    Batch,
    beginning_within,
    named_beginning,
    split_texts,
    token_batches,
)
from c2r.text.files import Text, json_lines, read_texts
from c2r.text.passages import Passage, PassageReader, check_answers, passage_batches
from c2r.text.records import check_data

__all__ = [
    "Batch",
    "Passage",
    "PassageReader",
    "Text",
    "beginning_within",
    "check_answers",
    "check_data",
    "json_lines",
    "named_beginning",
    "passage_batches",
    "read_texts",
    "split_texts",
    "token_batches",
]
