import pytest

from c2r.errors import PlanError
from c2r.planning import settings_per_layer
from c2r.sweeps import DEFAULT_POLICIES, default_points
from tests.planning.profiles import random_profile


def test_strengths_of_the_embedded_models_shape():
    layers = random_profile(1, 32, 4).layers
    assert [p.strength for p in default_points("c2r", layers, 4)] == [3, 4, 8, 16, 24]
    assert [p.strength for p in default_points("group_limited", layers, 4)] == [1, 2, 3]
    assert [p.strength for p in default_points("c2r_placed", layers, 16)] == [2, 4, 8]
    assert len(default_points("budgeted", layers, 4)) == 5


@pytest.mark.parametrize("num_ranks", [2, 8])
def test_every_default_fits_layers_that_differ(num_ranks):
    layers = random_profile(1, 8, 2).layers + random_profile(1, 12, 3).layers
    for policy in DEFAULT_POLICIES:
        for point in default_points(policy, layers, num_ranks):
            settings_per_layer(policy, point.strength, layers, num_ranks)


def test_a_policy_that_cannot_be_swept():
    for policy in ("top_k", "oracle"):
        with pytest.raises(PlanError, match="cannot be swept; choose from c2r"):
            default_points(policy, random_profile().layers, 2)
