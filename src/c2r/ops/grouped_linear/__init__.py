"""One linear map per expert, over rows ordered by expert."""

from c2r.ops.grouped_linear.reference import grouped_linear

__all__ = ["grouped_linear"]
