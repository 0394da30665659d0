"""The embedded model, plans that place its experts anywhere, and the loss of some tokens."""

import numpy as np
import torch
import torch.nn.functional as F

from c2r.adapters.huggingface import find_sites, load_model
from c2r.assets import tiny_folder
from c2r.plans import ClusterTopology, LayerPlan, Plan


def make_plan(model, num_ranks, seed=0, num_nodes=1, num_replicas=0):
    """Experts anywhere, ranks of unequal size."""
    rng = np.random.default_rng(seed)

    def layer(site):
        ranks = np.concatenate(
            [np.arange(num_ranks), rng.integers(0, num_ranks, site.num_experts - num_ranks)]
        )
        placement = rng.permutation(ranks)
        replicas = [
            rng.choice(np.flatnonzero(placement != rank), num_replicas, replace=False)
            for rank in range(num_ranks)
        ]
        return LayerPlan(
            name=site.name,
            num_experts=site.num_experts,
            top_k=site.top_k,
            placement=placement,
            replicas=np.stack(replicas),
        )

    return Plan(
        layers=tuple(layer(site) for site in find_sites(model)),
        topology=ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes),
    )


def tiny():
    return load_model(tiny_folder(), dtype=torch.float32)


def tokens(num_ranks, length=24):
    return torch.randint(0, 256, (num_ranks, length), generator=torch.Generator().manual_seed(0))


def summed_loss(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
