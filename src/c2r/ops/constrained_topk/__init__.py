"""The collaboration-constrained choice of k experts per token."""

from c2r.ops.constrained_topk.reference import (
    allowed_experts,
    choose_among,
    choose_constrained,
    constrained_topk,
)

__all__ = ["allowed_experts", "choose_among", "choose_constrained", "constrained_topk"]
