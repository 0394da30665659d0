"""How collaborative, how specialised and how evenly loaded the experts of a layer are."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from c2r.profiling.profile import LayerProfile
from c2r.types import Float


@dataclass(frozen=True, kw_only=True, slots=True)
class CollaborationMetrics:
    """Metrics of one layer, means over the experts that were used with others.

    With p_i(j) the share of expert j among expert i's co-activations and H the entropy in nats:

    Attributes:
        effective_collaborators: exp(H(p_i)); 1: one fixed partner, E - 1: all equally frequent.
        normalized_entropy: H(p_i) / ln(E - 1).
        top_partner_share: largest p_i(j).
        load_divergence: KL of p_i from what the other experts' loads alone would give, in nats.
        load_max_over_mean: tokens of the busiest expert over the mean.
        load_cv: standard deviation of the experts' tokens over the mean.
    """

    effective_collaborators: float
    normalized_entropy: float
    top_partner_share: float
    load_divergence: float
    load_max_over_mean: float
    load_cv: float


def measure_collaboration(layer: LayerProfile) -> CollaborationMetrics:
    """The metrics of one layer; 0 where no expert was used with another (k = 1)."""
    pairs = layer.coactivation.astype(np.float64)
    pairs = pairs[pairs.sum(1) > 0]
    load = layer.load.astype(np.float64)
    mean_load = max(load.mean(), np.finfo(np.float64).tiny)
    if len(pairs) == 0:
        entropy = top_share = divergence = np.zeros(1)
        effective = np.zeros(1)
    else:
        shares = pairs / pairs.sum(1, keepdims=True)
        entropy = _entropy(shares)
        effective = np.exp(entropy)
        top_share = shares.max(1)
        divergence = _divergence_from_load(layer, shares)
    return CollaborationMetrics(
        effective_collaborators=float(effective.mean()),
        normalized_entropy=float(
            entropy.mean() / max(np.log(max(layer.num_experts - 1, 2)), 1e-12)
        ),
        top_partner_share=float(top_share.mean()),
        load_divergence=float(divergence.mean()),
        load_max_over_mean=float(load.max() / mean_load),
        load_cv=float(load.std() / mean_load),
    )


def mean_metrics(metrics: Sequence[CollaborationMetrics]) -> CollaborationMetrics:
    """The mean of each metric over layers."""
    return CollaborationMetrics(
        **{
            field.name: float(np.mean([getattr(layer, field.name) for layer in metrics]))
            for field in fields(CollaborationMetrics)
        }
    )


def _entropy(shares: Float) -> Float:
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    entropy: Float = -(shares * logs).sum(1)
    return entropy


def _divergence_from_load(layer: LayerProfile, shares: Float) -> Float:
    used = layer.coactivation.sum(1) > 0
    expected = np.tile(layer.load.astype(np.float64), (layer.num_experts, 1))
    np.fill_diagonal(expected, 0)
    expected = expected[used] / expected[used].sum(1, keepdims=True)
    ratio = np.divide(shares, expected, where=shares > 0, out=np.ones_like(shares))
    divergence: Float = (shares * np.log(ratio)).sum(1)
    return divergence
