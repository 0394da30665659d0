"""Copying rows: from tokens to what is sent, from what arrived to the experts."""

from c2r.ops.backend import by_device
from c2r.ops.copy_rows import reference
from c2r.ops.copy_rows.reference import RowCopies, copies_of

copy_rows = by_device(reference.copy_rows)

__all__ = ["RowCopies", "copies_of", "copy_rows"]
