"""Summing rows that belong together: an expert's outputs per row, the ranks' rows per token."""

from c2r.ops.backend import by_device
from c2r.ops.sum_copies import reference

sum_copies = by_device(reference.sum_copies)
sum_copies_backward = by_device(reference.sum_copies_backward)

__all__ = ["sum_copies", "sum_copies_backward"]
