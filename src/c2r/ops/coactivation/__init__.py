"""Counting of how often experts are chosen together."""

from c2r.ops.backend import by_device
from c2r.ops.coactivation import reference

count_pairs = by_device(reference.count_pairs)

__all__ = ["count_pairs"]
