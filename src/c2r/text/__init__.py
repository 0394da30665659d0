"""Text files and conversations in, batches of token ids out."""

from c2r.text.batches import Batch, split_texts, token_batches
from c2r.text.files import Text, json_lines, read_texts

__all__ = ["Batch", "Text", "json_lines", "read_texts", "split_texts", "token_batches"]
