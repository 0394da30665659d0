"""Checkpoints as files: the tensors that depend on the numbering of experts, and renumbering."""

from c2r.adapters.checkpoints.shards import open_checkpoint

__all__ = [
    "open_checkpoint",
]
