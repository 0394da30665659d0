"""Summing rows that belong together: an expert's outputs per row, the ranks' rows per token."""

from c2r.ops.combine.reference import sum_copies

__all__ = ["sum_copies"]
