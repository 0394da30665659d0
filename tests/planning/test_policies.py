import numpy as np
import pytest

from c2r.errors import InputError, PlanError
from c2r.planning import free_strength, make_plan, parse_policy, with_policy
from c2r.planning.policies import order_partners_by_rank
from c2r.profiling import CollaborationProfile
from tests.planning.profiles import random_profile

COUNTS = np.array([[0, 5, 1, 2], [5, 0, 3, 0], [1, 3, 0, 4], [2, 0, 4, 0]])


def test_partners_closed_under_placement_by_hand():
    own = order_partners_by_rank(COUNTS, np.array([0, 1, 1, 0]), 1)
    assert own.tolist() == [[3], [2], [1], [0]]
    both = order_partners_by_rank(COUNTS, np.array([0, 1, 1, 0]), 2)
    assert both.tolist() == [[3, 1, 2], [2, 0, 3], [1, 3, 0], [0, 2, 1]]


def test_a_short_row_is_filled_up_with_the_expert_itself():
    partners = order_partners_by_rank(COUNTS, np.array([0, 0, 0, 1]), 1)
    assert partners.tolist() == [[1, 2], [0, 2], [1, 0], [3, 3]]


@pytest.mark.parametrize(
    ("policy", "strength"),
    [("top_k", 0.0), ("c2r", 4.0), ("c2r_placed", 2.0), ("budgeted", 0.1), ("priced", 0.1)],
)
def test_defaults(policy, strength):
    plan = make_plan(random_profile(2, 8, 2), num_ranks=4, policy=policy)
    assert [(layer.policy, layer.strength) for layer in plan.layers] == [(policy, strength)] * 2


def test_a_policy_and_its_strengths_are_written_in_one_way():
    assert parse_policy("priced") == ("priced", ())
    assert parse_policy("priced=0.1") == ("priced", (0.1,))
    assert parse_policy("c2r=8,8,6") == ("c2r", (8.0, 8.0, 6.0))
    for text in ("priced=", "priced=much", "c2r=8,,6"):
        with pytest.raises(InputError, match=f"of {text} are not numbers.* write priced=0.1"):
            parse_policy(text)
    for text in ("oracle=1", "budgeted:0.1", ""):
        with pytest.raises(PlanError, match="is unknown; choose top_k, c2r"):
            parse_policy(text)


def test_another_policy_on_the_same_placement():
    profile = random_profile(2, 8, 2)
    placed = make_plan(profile, num_ranks=4, policy="top_k")
    plan = with_policy(placed, profile, "budgeted", [0.1, 0.2])
    assert [layer.strength for layer in plan.layers] == [0.1, 0.2]
    assert (
        plan.fingerprint
        == make_plan(profile, num_ranks=4, policy="budgeted", strength=[0.1, 0.2]).fingerprint
    )
    lists = with_policy(placed, profile, "c2r", 3).layers[0].partners
    assert np.array_equal(lists, make_plan(profile, top_t=3).layers[0].partners)


def test_layers_may_differ_in_experts_and_k():
    layers = random_profile(1, 8, 2).layers + random_profile(1, 12, 3).layers
    profile = CollaborationProfile(layers=layers)
    for policy in ("c2r", "c2r_placed", "group_limited", "budgeted", "pruned", "priced"):
        assert make_plan(profile, num_ranks=4, policy=policy).num_layers == 2


def test_the_loosest_strength():
    assert [free_strength(p, 8, 4) for p in ("c2r", "group_limited", "budgeted")] == [7, 4, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "oracle"}, "policy 'oracle' is unknown; choose top_k, c2r"),
        ({"policy": "group_limited", "strength": 5}, "m = 5 ranks per token does not fit 4 ranks"),
        ({"policy": "group_limited", "strength": 0}, "choose m from 1 to 4"),
        ({"policy": "c2r_placed", "strength": 9}, "choose m from 1 to 4"),
        ({"policy": "group_limited", "strength": 1.5}, "m = 1.5; give a whole number"),
        ({"policy": "budgeted", "strength": 1.0}, "eps = 1.0; choose eps from 0 to below 1"),
        ({"policy": "budgeted", "strength": -0.1}, "eps = -0.1; choose eps from 0"),
        ({"policy": "pruned", "strength": float("nan")}, "eps = nan; give a finite number"),
        ({"policy": "priced", "strength": float("inf")}, "price = inf; give a finite number"),
        ({"policy": "top_k", "strength": 3}, "top_k has no strength; leave out the 3"),
        ({"policy": "c2r", "strength": 99}, "T = 99 does not fit 12 experts"),
        ({"policy": "budgeted", "strength": [0.1]}, "1 values of eps for 2 layers"),
        ({"policy": "budgeted", "top_t": 4}, "T is the strength of the policy c2r"),
    ],
)
def test_strengths_that_do_not_fit_are_refused(options, message):
    with pytest.raises(PlanError) as error:
        make_plan(random_profile(2, 12, 3), num_ranks=4, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_ranks_too_small_for_one_to_hold_k():
    with pytest.raises(PlanError, match=r"4 ranks of 2 experts with k = 3; choose m from 2 to 4"):
        make_plan(random_profile(1, 8, 3), num_ranks=4, policy="group_limited", strength=1)
