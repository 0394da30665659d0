from types import SimpleNamespace

import numpy as np
import pytest

from c2r.planning import make_plan
from c2r.plans import ClusterTopology
from c2r.prediction import predict_traffic
from c2r.prediction.shares import all_shares, measured_shares
from tests.reporting.profiles import clustered_profile


@pytest.mark.parametrize("replicas", [0, 1])
def test_visits_add_up_to_the_copies_and_rows_to_the_experts_of_a_token(replicas):
    profile = clustered_profile()
    plan = make_plan(profile, num_ranks=4, replicas=replicas)
    mean = predict_traffic(profile, plan).mean
    for tried, copies in [(None, mean.copies_in_order), (plan, mean.copies_placed)]:
        layers = all_shares(profile, tried, ClusterTopology(num_ranks=4))
        assert np.mean([layer.visits.sum() for layer in layers]) == pytest.approx(copies)
        assert [layer.rows.sum() for layer in layers] == pytest.approx([4.0] * 3)


def test_measured_shares_are_as_given_and_of_as_many_layers():
    names = ("rank_rows", "rank_visits", "node_visits")

    def found(*figures):
        return measured_shares(SimpleNamespace(**dict(zip(names, figures, strict=True))))

    (layer,) = found([[1.0, 3.0]], [[0.5, 1.0]], [[1.0]])
    assert layer.rows.tolist() == [1.0, 3.0] and layer.visits.tolist() == [0.5, 1.0]
    assert layer.node_visits.tolist() == [1.0] and layer.expert_chances is None
    with pytest.raises(ValueError, match="shorter"):
        found([[1.0]], [], [[1.0]])
