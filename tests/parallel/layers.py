"""A small expert layer with the tokens of several ranks, and what one process makes of it."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from c2r.ops.grouped_linear import grouped_linear
from c2r.parallel import make_dispatcher, parallel_moe
from c2r.plans import ClusterTopology, LayerPlan
from c2r.plans.holders import NO_EXPERTS


@dataclass(frozen=True, kw_only=True)
class Layer:
    """`hidden`, `ids` and `weights` of every rank; expert matrices of all experts."""

    placement: np.ndarray
    first: torch.Tensor
    second: torch.Tensor
    hidden: list[torch.Tensor]
    ids: list[torch.Tensor]
    weights: list[torch.Tensor]
    replicas: np.ndarray = field(default_factory=lambda: NO_EXPERTS)

    @property
    def plan(self):
        return LayerPlan(
            num_experts=len(self.placement),
            top_k=self.ids[0].shape[1],
            placement=self.placement,
            replicas=self.replicas,
        )

    @property
    def num_ranks(self):
        return len(self.hidden)

    @property
    def leaves(self):
        return [*self.hidden, *self.weights, self.first, self.second]

    def run(self, comm, name, num_chunks=1, **options):
        """This rank's output."""
        return parallel_moe(*self.given(comm, name, **options), num_chunks)

    def given(self, comm, name, **options):
        """What `parallel_moe` takes on this rank."""
        rank = comm.rank
        own = self.plan.experts_of(rank)
        dispatcher = make_dispatcher(
            name, comm=comm, placement=self.placement, replicas=self.replicas, **options
        )

        def experts(rows, counts):
            inner = grouped_linear(rows, self.first[own], counts)
            return grouped_linear(inner.tanh(), self.second[own], counts)

        return self.hidden[rank], self.ids[rank], self.weights[rank], experts, dispatcher

    def with_replicas(self, replicas):
        """The same with further experts of each rank."""
        return replace(self, replicas=np.asarray(replicas))

    def rows_predicted(self, rank, num_nodes=1):
        """Rows that this rank sends to each, once per rank, as its plan predicts."""
        topology = ClusterTopology(num_ranks=self.num_ranks, num_nodes=num_nodes)
        visits = self.plan.ranks_of(self.ids[rank].numpy(), topology)
        return tuple(int((visits == other).any(1).sum()) for other in range(self.num_ranks))

    def alone(self, rank):
        """The rank's output as one process computes it."""
        hidden, ids, weights = self.hidden[rank], self.ids[rank], self.weights[rank]
        outputs = torch.stack(
            [(hidden @ a).tanh() @ b for a, b in zip(self.first, self.second, strict=True)], dim=1
        )
        chosen = outputs.gather(1, ids.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[1]))
        return (chosen * (weights * (ids >= 0))[..., None]).sum(1)


def make_layer(
    placement, num_tokens, *, top_k=2, sizes=(8, 6), dtype=torch.float64, seed=0
) -> Layer:
    """Random tokens, `num_tokens` of each rank, for experts placed as given."""
    width, inner = sizes
    generator = torch.Generator().manual_seed(seed)
    num_experts = len(placement)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def choices(tokens):
        keys = torch.rand((tokens, num_experts), generator=generator)
        return keys.argsort(dim=1)[:, :top_k]

    return Layer(
        placement=np.asarray(placement),
        first=(random(num_experts, width, inner) / width**0.5).requires_grad_(),
        second=(random(num_experts, inner, width) / inner**0.5).requires_grad_(),
        hidden=[random(n, width).requires_grad_() for n in num_tokens],
        ids=[choices(n) for n in num_tokens],
        weights=[random(n, top_k).abs().requires_grad_() for n in num_tokens],
    )
