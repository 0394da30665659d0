import numpy as np
import pytest

from c2r.planning import make_plan
from c2r.prediction import predict_rank_traffic, predict_traffic
from c2r.profiling import CollaborationProfile, LayerProfile, RoutingSets


@pytest.mark.parametrize("replicas", [0, 1])
def test_rows_add_up_to_the_copies(replicas):
    profile = random_profile()
    plan = make_plan(profile, num_ranks=4, replicas=replicas)
    found, mean = predict_rank_traffic(profile, plan), predict_traffic(profile, plan).mean
    for matrix, copies in [
        (found.k_fold, mean.copies_k_fold),
        (found.contiguous, mean.copies_contiguous),
        (found.placed, mean.copies_placed),
    ]:
        assert matrix.shape == (4, 4)
        assert matrix.sum(1) == pytest.approx(np.full(4, copies))


def random_profile():
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(2):
        ids = np.argsort(rng.random((300, 12)), axis=1)[:, :3]
        chosen = np.zeros((300, 12), dtype=np.int64)
        np.put_along_axis(chosen, ids, 1, axis=1)
        pairs = chosen.T @ chosen
        np.fill_diagonal(pairs, 0)
        layers.append(
            LayerProfile(
                name="",
                num_experts=12,
                top_k=3,
                num_tokens=300,
                coactivation=pairs,
                load=chosen.sum(0),
                sets=RoutingSets.count(ids, rng, 1000),
            )
        )
    return CollaborationProfile(layers=tuple(layers))
