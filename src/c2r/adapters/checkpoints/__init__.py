"""Checkpoints as files: the tensors that depend on the numbering of experts, and renumbering."""

from c2r.adapters.checkpoints.permute import PermutationReport, permute_checkpoint, undo_permutation
from c2r.adapters.checkpoints.shards import open_checkpoint

__all__ = [
    "PermutationReport",
    "open_checkpoint",
    "permute_checkpoint",
    "undo_permutation",
]
