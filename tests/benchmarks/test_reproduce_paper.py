"""What the reproduction of the paper computes itself, by hand and on the authors' matrices."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.planning.instances import REFERENCE


@pytest.fixture
def program(monkeypatch):
    from benchmarks import harness

    monkeypatch.syspath_prepend(harness.__file__.rpartition("/")[0])
    import reproduce_paper

    return reproduce_paper


def test_choices_against_the_rule_by_hand(program):
    """One layer of four experts, lists of one: 0 with 1, 1 with 0, 2 with 3, 3 with 2."""
    partners = np.array([[1], [0], [3], [2]])
    plan = SimpleNamespace(layers=[SimpleNamespace(policy="c2r", partners=partners)])
    scores = torch.tensor([[[4.0, 3, 2, 1], [4, 2, 3, 1], [1, 2, 3, 4]]])
    obeyed = torch.tensor([[[0, 1], [0, 1], [3, 2]]])
    found = program._against_rule(obeyed, scores, plan)
    assert found == {"replaced": pytest.approx(1 / 6), "outside": 0}
    broken = torch.tensor([[[0, 2], [2, 3], [3, 2]]])  # not on the list; not the top-1
    assert program._against_rule(broken, scores, plan)["outside"] == pytest.approx(2 / 6)


def test_loads_and_visits_in_order_by_hand(program):
    """Eight experts on four ranks: two of three tokens stay on rank 0, the third visits two."""
    ids = np.array([[[0, 1], [1, 0], [0, 7]]])
    plan = SimpleNamespace(layers=[SimpleNamespace(num_experts=8)])
    assert program._in_order(ids, plan) == {
        "load_in_order": pytest.approx(5 / 1.5),
        "busiest_in_order": pytest.approx(4.0),
    }


@pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the authors' matrices are not beside the project"
)
def test_the_authors_matrices(program):
    """Copies per token as they were first computed from the published files, apart from c2r."""
    one, two = program.matrices(REFERENCE)
    assert (one["T"], two["T"]) == (1, 2)
    assert [one["outside_lists"], two["outside_lists"]] == [0, 0]
    keys = ("in_order", "placed", "placed_on_2", "expert_load", "collaborators")
    known = {1: (1.879, 1.246, 1.079, 1.57, 1.22), 2: (1.867, 1.437, 1.178, 1.33, 2.01)}
    for row in (one, two):
        assert [row[key] for key in keys] == pytest.approx(known[row["T"]], abs=6e-3)
