"""Profiles that a report can be made of, quick to make at any size."""

import numpy as np

from c2r.profiling import CollaborationProfile, LayerProfile, RoutingSets
from tests.results.measurements import measurement_document


def clustered_profile(num_layers=3, num_experts=16, top_k=4, num_tokens=500, seed=0, **provenance):
    """Tokens choose among neighbours of a random expert, so that experts have partners."""
    rng = np.random.default_rng(seed)
    layers = []
    for index in range(num_layers):
        center = rng.integers(num_experts, size=(num_tokens, 1))
        steps = np.argsort(rng.random((num_tokens, 2 * top_k)), axis=1)[:, :top_k]
        ids = (center + steps) % num_experts
        chosen = np.zeros((num_tokens, num_experts))
        np.put_along_axis(chosen, ids, 1, axis=1)
        pairs = (chosen.T @ chosen).astype(np.int64)
        load = np.diag(pairs).copy()
        np.fill_diagonal(pairs, 0)
        layers.append(
            LayerProfile(
                name=f"layers.{index}.mlp.gate",
                num_experts=num_experts,
                top_k=top_k,
                num_tokens=num_tokens,
                coactivation=pairs,
                load=load,
                sets=RoutingSets.count(ids, rng, 100_000),
            )
        )
    return CollaborationProfile(layers=tuple(layers), provenance=provenance)


def sweep_document(**baseline):
    """What `c2r sweep` writes, of a model without a name."""
    points = [
        ("c2r", 8.0, 2.2, 1.7, 1.9),
        ("c2r", 4.0, 2.5, 1.4, 2.2),
        ("budgeted", 0.1, 2.004, 1.5, 1.6),
    ]
    return {
        "request": {"num_ranks": 4, "num_nodes": 1},
        "complete": True,
        "seconds": 1.0,
        "spread": [],
        "baseline": measurement_document(**baseline),
        "points": [
            measurement_document(
                policy=policy,
                strength=strength,
                loss=loss,
                copies=copies,
                rank_load_max_over_mean=load,
                loss_increase=loss / 2 - 1,
                loss_increase_interval=[loss / 2 - 1.01, loss / 2 - 0.99],
                plan_fingerprint=f"{policy} {strength}",
            )
            for policy, strength, loss, copies, load in points
        ],
    }


def benchmark_document():
    """What `c2r bench parallel --json` prints, in short."""
    cases = [("k_fold", 0.6), ("zero_redundancy", 0.5), ("zero_redundancy, placed", 0.4)]
    return {
        "benchmark": "expert_parallel",
        "baseline": "k_fold",
        "settings": {"model": "tiny", "rounds": 7},
        "cases": [
            {
                "case": {"name": name, "dispatcher": name.split(",")[0]},
                "seconds": {"median": median, "lower": median - 0.01, "upper": median + 0.02},
                "ratio": {"median": median / 0.6, "lower": median / 0.62, "upper": median / 0.58},
                "rows_sent": 100.0,
            }
            for name, median in cases
        ],
        "machine": {"cores": 2},
        "versions": {"torch": "2.13.0"},
    }
