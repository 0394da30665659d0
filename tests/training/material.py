"""The embedded model, a plan for it, and examples of real text."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from c2r.adapters.huggingface import find_sites, load_model
from c2r.assets import heldout_files, tiny_folder
from c2r.plans import ClusterTopology, LayerPlan, Plan, contiguous_placement

NUM_RANKS = 4


def tiny(**options):
    return load_model(tiny_folder(), dtype=torch.float32, **options)


def with_replicas(plan, num_replicas=2):
    """The same plan, with replicas of the first experts of the next rank on each rank."""
    ranks = range(1, plan.topology.num_ranks + 1)

    def layer(before):
        firsts = [np.flatnonzero(before.placement == rank % len(ranks)) for rank in ranks]
        return replace(before, replicas=np.stack([ids[:num_replicas] for ids in firsts]))

    return replace(plan, layers=tuple(map(layer, plan.layers)))


def plan_of(model, policy="priced", strength=0.1, partners=0, num_ranks=NUM_RANKS):
    def layer(site):
        others = [np.delete(np.arange(site.num_experts), i) for i in range(site.num_experts)]
        return LayerPlan(
            name=site.name,
            num_experts=site.num_experts,
            top_k=site.top_k,
            policy=policy,
            strength=float(strength),
            partners=np.array(others)[:, :partners],
            placement=contiguous_placement(site.num_experts, num_ranks),
        )

    layers = tuple(layer(site) for site in find_sites(model))
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=num_ranks))


@cache
def text_bytes():
    return b"".join(path.read_bytes()[:20_000] for path in heldout_files())


def examples(count=32, length=48):
    """Windows of text, every fourth half as long, every third of two packed pieces."""
    made = []
    for index in range(count):
        size = length // 2 if index % 4 == 3 else length
        ids = torch.tensor(list(text_bytes()[index * length : index * length + size]))
        position_ids = torch.arange(size)
        if index % 3 == 2:
            position_ids = torch.cat([torch.arange(10), torch.arange(size - 10)])
        labels = ids.masked_fill(position_ids == 0, -100)
        made.append({"input_ids": ids, "labels": labels, "position_ids": position_ids})
    return made
