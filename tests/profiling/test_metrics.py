import math

import numpy as np
import pytest

from c2r.profiling import LayerProfile, mean_metrics, measure_collaboration


def layer_of(pairs, load=None, top_k=2):
    pairs = np.array(pairs)
    load = pairs.sum(1) // (top_k - 1) if load is None else np.array(load)
    return LayerProfile(
        name="",
        num_experts=len(pairs),
        top_k=top_k,
        num_tokens=int(load.sum()) // top_k,
        coactivation=pairs,
        load=load,
    )


def test_one_fixed_partner():
    metrics = measure_collaboration(
        layer_of([[0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 3], [0, 0, 3, 0]])
    )
    assert metrics.effective_collaborators == pytest.approx(1)
    assert metrics.normalized_entropy == pytest.approx(0)
    assert metrics.top_partner_share == pytest.approx(1)
    assert metrics.load_max_over_mean == pytest.approx(1.5)
    assert metrics.load_cv == pytest.approx(0.5)


def test_everyone_alike():
    metrics = measure_collaboration(layer_of(5 * (1 - np.eye(4, dtype=int))))
    assert metrics.effective_collaborators == pytest.approx(3)
    assert metrics.normalized_entropy == pytest.approx(1)
    assert metrics.top_partner_share == pytest.approx(1 / 3)
    assert metrics.load_divergence == pytest.approx(0)


def test_a_mixed_expert_by_hand():
    """Expert 0: shares 3/4 and 1/4; experts 1 and 2: one partner and both."""
    metrics = measure_collaboration(layer_of([[0, 3, 1], [3, 0, 0], [1, 0, 0]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.effective_collaborators == pytest.approx((math.exp(entropy) + 1 + 1) / 3)
    assert metrics.normalized_entropy == pytest.approx(entropy / 3 / math.log(2))


def test_unused_experts_are_left_out_and_k_1_has_no_collaborators():
    used = measure_collaboration(layer_of([[0, 4, 0], [4, 0, 0], [0, 0, 0]]))
    assert used.effective_collaborators == pytest.approx(1)
    alone = measure_collaboration(layer_of(np.zeros((3, 3), int), load=[1, 2, 3], top_k=2))
    assert alone.effective_collaborators == 0
    assert mean_metrics([used, alone]).effective_collaborators == pytest.approx(0.5)
