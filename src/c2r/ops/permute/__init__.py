"""Copying rows: from tokens to what is sent, from what arrived to the experts."""

from c2r.ops.backend import by_device
from c2r.ops.permute import reference
from c2r.ops.permute.reference import Copies, copies_of

copy_rows = by_device(reference.copy_rows)

__all__ = ["Copies", "copies_of", "copy_rows"]
