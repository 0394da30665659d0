import numpy as np
import pytest

from c2r.training.annealing import anneal
from tests.training.material import plan_of, tiny


@pytest.fixture(scope="module")
def model():
    return tiny()


def strengths(plan, steps, num_steps):
    return [anneal(plan, step, num_steps).layers[0].strength for step in steps]


def test_prices_and_shares_rise_from_nothing(model):
    for policy in ("priced", "budgeted", "pruned"):
        plan = plan_of(model, policy, 0.4)
        assert strengths(plan, (0, 10, 30, 40), 40) == pytest.approx([0, 0.1, 0.3, 0.4])


def test_ranks_per_token_fall_from_all(model):
    assert strengths(plan_of(model, "group_limited", 1), (0, 20, 30, 40), 40) == [4, 2, 2, 1]


def test_lists_shrink_from_everyone(model):
    plan = plan_of(model, "c2r", 5, partners=5)
    assert strengths(plan, (0, 20, 39, 40), 40) == [31, 18, 6, 5]
    start = anneal(plan, 0, 40).layers[0].partners
    assert start.shape == (32, 31)
    assert (np.sort(start[7]) == np.delete(np.arange(32), 7)).all()
    assert (anneal(plan, 20, 40).layers[0].partners[:, :5] == plan.layers[0].partners).all()


def test_few_stages_and_the_plan_itself_at_the_end(model):
    plan = plan_of(model)
    stages = {anneal(plan, step, 1000).fingerprint for step in range(1000)}
    assert len(stages) == 20
    assert anneal(plan, 1000, 1000) is plan and anneal(plan, 0, 0) is plan


def test_plain_top_k_stays(model):
    assert strengths(plan_of(model, "top_k", 0), (0, 5), 10) == [0, 0]
