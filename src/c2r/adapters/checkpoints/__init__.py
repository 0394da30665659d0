"""Checkpoints as files: which tensors the numbering of experts touches, and its change."""

from c2r.adapters.checkpoints.permute import PermutationReport, permute_checkpoint, undo_permutation
from c2r.adapters.checkpoints.shards import open_checkpoint

__all__ = [
    "PermutationReport",
    "open_checkpoint",
    "permute_checkpoint",
    "undo_permutation",
]
