"""The activation between an expert's two linear maps."""

from c2r.ops.backend import by_device
from c2r.ops.gated_activation import reference

silu_gated = by_device(reference.silu_gated)

__all__ = ["silu_gated"]
