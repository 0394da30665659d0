"""Replicas of experts in training: their gradients go to the owner, its weights come back.

The owner of an expert is the rank that has it as its own. It alone has the whole gradient, and its
optimizer state alone counts; what its optimizer makes of the weights is copied to the replicas. So
these are bitwise the owner's by construction, whatever the optimizer, and a norm of all gradients
counts every expert once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from c2r.adapters.huggingface.expert_parallel.expert_weights import in_pieces
from c2r.ops.copy_rows import copies_of, copy_rows
from c2r.ops.sum_copies import sum_copies
from c2r.parallel import Comm, SplitSizes, own_part
from c2r.types import Int


class ReplicaWeights:
    """What this rank exchanges with those that hold replicas of its experts, or it of theirs.

    Args:
        comm: the ranks.
        placement: `[E]` the rank that holds each expert as its own.
        replicas: by rank its further experts, in the order of its parameters' rows.
    """

    def __init__(self, comm: Comm, placement: Int, replicas: Sequence[Int]) -> None:
        self._comm = comm
        self._num_own = int(np.count_nonzero(placement == comm.rank))
        owners = [placement[experts] for experts in replicas]
        departing = [owner == comm.rank for owner in owners]
        # By rank that holds the replica, then in its order: so they arrive by owner in that order.
        row_of = torch.from_numpy(np.cumsum(placement == comm.rank) - 1)
        wanted = np.concatenate([each[own] for each, own in zip(replicas, departing, strict=True)])
        self._departing = copies_of(row_of[wanted].to(comm.device), self._num_own)
        self._arriving = torch.from_numpy(owners[comm.rank].argsort(kind="stable")).to(comm.device)
        self._sizes = SplitSizes(
            send=[int(np.count_nonzero(own)) for own in departing],
            receive=np.bincount(owners[comm.rank], minlength=comm.size).tolist(),
            what="the exchange of replicas",
        )
        self._num_per_rank = sum(map(len, replicas)) / comm.size

    @torch.no_grad()
    def refresh(self, module: nn.Module) -> None:
        """Copies the weights of every expert from its owner to its replicas."""
        for parameter in module.parameters(recurse=False):
            for (rows,) in in_pieces((own_part(parameter),), self._num_per_rank):
                own, replicas = self._split(rows)
                received = self._comm.exchange(copy_rows(own, self._departing), self._sizes).wait()
                replicas[self._arriving] = received

    @torch.no_grad()
    def reduce_gradients(self, module: nn.Module) -> None:
        """Adds the gradients of replicas, in the order of their ranks, to those of the owner.

        The replicas' become zero.
        """
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # A rank that did not use it still takes part in the sum.
                parameter.grad = torch.zeros_like(parameter)
            for (rows,) in in_pieces((own_part(parameter.grad),), self._num_per_rank):
                own, replicas = self._split(rows)
                leaving = replicas[self._arriving]
                received = self._comm.exchange(leaving, self._sizes.reversed).wait()
                own += sum_copies(received, self._departing)
                replicas.zero_()

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[: self._num_own], rows[self._num_own :]
