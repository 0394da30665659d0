"""Counting of how often experts are chosen together."""

from c2r.ops.coactivation.reference import count_pairs

__all__ = ["count_pairs"]
