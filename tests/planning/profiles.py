"""Profiles for tests, made from routing sets."""

import numpy as np

from c2r.profiling import CollaborationProfile, LayerProfile, RoutingSets
from tests.planning.instances import load_of, random_sets


def layer_profile(sets, counts, num_experts, *, keep_sets=True):
    sets, counts = np.asarray(sets), np.asarray(counts)
    held = np.zeros((len(sets), num_experts), dtype=np.int64)
    np.put_along_axis(held, sets, 1, axis=1)
    coactivation = held.T @ (held * counts[:, None])
    np.fill_diagonal(coactivation, 0)
    return LayerProfile(
        name="",
        num_experts=num_experts,
        top_k=sets.shape[1],
        num_tokens=int(counts.sum()),
        coactivation=coactivation,
        load=load_of(sets, counts, num_experts),
        sets=RoutingSets(experts=sets, counts=counts, num_tokens=int(counts.sum()))
        if keep_sets
        else None,
    )


def random_profile(num_layers=2, num_experts=8, top_k=2, *, keep_sets=True, **provenance):
    return CollaborationProfile(
        layers=tuple(
            layer_profile(
                *random_sets(num_experts, top_k, 300, seed=index, groups=3)[:2],
                num_experts,
                keep_sets=keep_sets,
            )
            for index in range(num_layers)
        ),
        provenance=provenance,
    )
