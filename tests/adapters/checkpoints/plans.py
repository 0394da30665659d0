"""Plans with placements that no one would guess."""

from typing import Any

import numpy as np

from c2r.adapters.huggingface import RouterSite, fingerprint
from c2r.plans import ClusterTopology, LayerPlan, Plan


def shuffled_plan(
    sites: tuple[RouterSite, ...], model: Any = None, num_ranks: int = 4, num_groups: int = 1
) -> Plan:
    """Random partners and a random placement of equal sizes, different in every layer.

    With groups, whole groups change places; experts that compute nothing lie on the last rank.
    """
    rng = np.random.default_rng(3)
    layers = []
    for site in sites:
        size = site.num_experts
        stored = min(size, 8)  # LongCat and ZAYA: ids that compute nothing follow 8 experts
        ranks = rng.permutation(num_groups) if num_groups > 1 else rng.permutation(num_ranks)
        placement = np.full(size, num_ranks - 1)
        placement[:stored] = np.repeat(ranks % num_ranks, stored // len(ranks))
        if num_groups == 1:
            placement[:stored] = rng.permutation(placement[:stored])
        others = [rng.permutation(np.delete(np.arange(size), i)) for i in range(size)]
        top_t = min(max(site.top_k, 2), size - 1)
        layers.append(
            LayerPlan(
                name=site.name,
                num_experts=size,
                top_k=site.top_k,
                policy="c2r",
                strength=float(top_t),
                partners=np.array(others)[:, :top_t],
                placement=placement,
            )
        )
    provenance = {} if model is None else {"model_fingerprint": fingerprint(model, sites)}
    topology = ClusterTopology(num_ranks=num_ranks)
    return Plan(layers=tuple(layers), topology=topology, provenance=provenance)
