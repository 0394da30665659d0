import numpy as np
import pytest

from c2r.adapters.checkpoints.order import check_groups, contiguous_order, renumber_layer
from c2r.errors import PlanError
from c2r.plans import NO_EXPERTS, ClusterTopology, LayerPlan


def layer(placement: list[int], replicas: list[list[int]] | None = None) -> LayerPlan:
    size = len(placement)
    return LayerPlan(
        name="layers.0.gate",
        num_experts=size,
        top_k=2,
        policy="c2r",
        strength=1.0,
        partners=np.array([[(i + 1) % size] for i in range(size)]),
        placement=np.array(placement),
        replicas=np.array(replicas) if replicas else NO_EXPERTS,
    )


def ranks(num_ranks: int, num_nodes: int = 1) -> ClusterTopology:
    return ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)


def test_experts_follow_their_ranks() -> None:
    order = contiguous_order(layer([1, 0, 1, 0]), ranks(2))
    assert order.experts.tolist() == [1, 3, 0, 2]
    assert order.inverse.experts.tolist() == [2, 0, 3, 1]


def test_partners_placement_and_replicas_are_renumbered() -> None:
    plan = layer([1, 0, 1, 0], [[2], [3]])  # rank 0: 1, 3 and a copy of 2; rank 1: 0, 2 and 3
    order = contiguous_order(plan, ranks(2))
    new = renumber_layer(plan, order)
    assert new.placement.tolist() == [0, 0, 1, 1]
    assert new.replicas.tolist() == [[3], [1]]
    assert new.partners.tolist() == [[3], [2], [0], [1]]  # 1-2, 3-0, 0-1 and 2-3 in old numbers
    for rank in range(2):
        assert order.experts[new.experts_of(rank)].tolist() == plan.experts_of(rank).tolist()
    back = renumber_layer(new, order.inverse)
    assert back.partners.tolist() == plan.partners.tolist()
    assert back.replicas.tolist() == plan.replicas.tolist()


def test_the_larger_ranks_come_first() -> None:
    plan = layer([0, 1, 1, 0, 1], [[1], [0]])
    order = contiguous_order(plan, ranks(2))
    assert order.experts.tolist() == [1, 2, 4, 0, 3] and order.ranks.tolist() == [1, 0]
    new = renumber_layer(plan, order)
    assert new.placement.tolist() == [0, 0, 0, 1, 1]
    assert order.experts[new.replicas].tolist() == [[0], [1]]
    with pytest.raises(PlanError, match=r"\[2, 3\] of 5 experts.*holds \[3, 2\]"):
        contiguous_order(plan, ranks(2, num_nodes=2))


def test_ids_that_compute_nothing_keep_their_place() -> None:
    order = contiguous_order(layer([1, 0, 1, 0, 1, 1]), ranks(2), num_stored=4)
    assert order.experts.tolist() == [1, 3, 0, 2, 4, 5]


def test_sizes_that_no_engine_gives() -> None:
    with pytest.raises(PlanError, match="a number of ranks that divides 4"):
        contiguous_order(layer([0, 0, 0, 1]), ranks(2))


def test_groups_stay_together() -> None:
    whole = contiguous_order(layer([1, 1, 0, 0]), ranks(2))
    check_groups("gate", whole, 2)
    inside = contiguous_order(layer([1, 0, 3, 2]), ranks(4))
    check_groups("gate", inside, 2)
    split = contiguous_order(layer([1, 0, 1, 0]), ranks(2))
    with pytest.raises(PlanError, match="2 groups of 2 experts"):
        check_groups("gate", split, 2)
    with pytest.raises(PlanError, match="3 groups"):
        check_groups("gate", whole, 3)


def test_a_plan_without_lists_is_renumbered_too() -> None:
    plan = LayerPlan(num_experts=4, top_k=2, placement=np.array([1, 0, 1, 0]))
    new = renumber_layer(plan, contiguous_order(plan, ranks(2)))
    assert new.placement.tolist() == [0, 0, 1, 1]
    assert (new.top_t, new.replicas.size) == (0, 0)
