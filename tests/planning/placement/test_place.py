import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.errors import PlanError
from c2r.planning import PlacementOptions, place_experts
from c2r.planning.placement.exact import enumerate_placements
from c2r.planning.placement.hypergraph import partition_hypergraph
from c2r.planning.placement.search import PlacementProblem, improve_placement
from c2r.plans import (
    ClusterTopology,
    contiguous_placement,
    load_max_over_mean,
    mean_copies,
    mean_node_copies,
    rank_loads,
)
from tests.planning.exhaustive import best_cut, cut
from tests.planning.instances import (
    pairs_as_sets,
    random_pairs,
    random_sets,
    reference_matrices,
)

QUICK = 0.05


def place(instance, num_ranks, num_nodes=1, **options):
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    return place_experts(*instance, topology, PlacementOptions(**{"effort": QUICK, **options}))


def test_experts_chosen_together_share_a_rank():
    sets, counts, load = np.array([[0, 2], [1, 3]]), np.array([7, 5]), np.array([7, 5, 7, 5])
    assert place((sets, counts, load), 2).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", ["topt_1_collaboration.pkl", "topt_2_collaboration.pkl"])
def test_published_matrices_are_placed_optimally_in_every_layer(name, num_ranks):
    for pairs in reference_matrices(name):
        placement = place((*pairs_as_sets(pairs), pairs.sum(1)), num_ranks)
        assert cut(pairs, placement) == best_cut(pairs, num_ranks)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("seed", range(12))
def test_other_matrices_of_8_experts_are_placed_optimally(seed, num_ranks):
    pairs = random_pairs(8, seed)
    placement = place((*pairs_as_sets(pairs), pairs.sum(1)), num_ranks)
    assert cut(pairs, placement) == best_cut(pairs, num_ranks)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_search_alone_finds_the_optimum_of_8_experts(num_ranks, monkeypatch):
    monkeypatch.setattr("c2r.planning.placement.place.is_small", lambda _: False)
    for seed in range(6):
        pairs = random_pairs(8, seed)
        placement = place((*pairs_as_sets(pairs), pairs.sum(1)), num_ranks)
        assert cut(pairs, placement) == best_cut(pairs, num_ranks)


def test_a_planted_placement_is_found():
    sets = np.array([np.sort(np.arange(4) * 8 + group) for group in range(8)])
    sets = np.concatenate([sets, [[0, 1, 2, 3]]])
    counts = np.array([10] * 8 + [1])
    load = np.bincount(sets.ravel(), weights=np.repeat(counts, 4), minlength=32)
    assert place((sets, counts, load), 8).tolist() == [expert % 8 for expert in range(32)]


@settings(max_examples=20)
@given(
    st.integers(9, 24),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (3, 1), (4, 1), (5, 1), (4, 2), (6, 3)]),
    st.integers(0, 10**6),
)
def test_sizes_are_even_and_copies_no_worse_than_contiguous(num_experts, top_k, devices, seed):
    num_ranks, num_nodes = devices
    instance = random_sets(num_experts, top_k, 200, seed, groups=3)
    placement = place(instance, num_ranks, num_nodes, effort=0.02)
    assert placement.shape == (num_experts,)
    assert np.ptp(np.bincount(placement, minlength=num_ranks)) <= 1
    if num_nodes == 1:
        contiguous = contiguous_placement(num_experts, num_ranks)
        assert mean_copies(*instance[:2], placement) <= mean_copies(*instance[:2], contiguous)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_improvement_is_never_worse_than_its_start(seed, num_ranks):
    sets, counts, load = random_sets(14, 3, 100, seed)
    problem = PlacementProblem(
        sets=sets, counts=counts, load=load, topology=ClusterTopology(num_ranks=num_ranks)
    )
    rng = np.random.default_rng(seed)
    start = rng.permutation(contiguous_placement(14, num_ranks))
    better = improve_placement(problem, start, 30, rng)
    assert problem.cost(better) <= problem.cost(start)
    assert np.ptp(np.bincount(better, minlength=num_ranks)) <= 1


def test_renaming_the_experts_renames_the_placement():
    sets, counts, load = random_sets(8, 3, 400, seed=5, groups=4)
    renamed = np.random.default_rng(0).permutation(8)
    there = np.sort(renamed[sets], axis=1)
    placement = place((sets, counts, load), 4)
    other = place((there, counts, load[np.argsort(renamed)]), 4)
    assert mean_copies(sets, counts, placement) == mean_copies(there, counts, other)


def test_a_start_is_improved_or_kept():
    sets, counts, load = random_sets(24, 4, 2000, seed=2, groups=6)
    good = place((sets, counts, load), 4, effort=0.5, seed=3)
    again = place((sets, counts, load), 4, effort=0.001, start=good)
    assert mean_copies(sets, counts, again) <= mean_copies(sets, counts, good)


def test_a_start_of_other_sizes_is_refused():
    with pytest.raises(PlanError, match=r"\[7, 5\] experts per rank"):
        place(random_sets(12, 2, 50, 0), 2, start=np.array([0] * 7 + [1] * 5))


def test_weights_may_be_fractions():
    sets, counts, load = random_sets(16, 4, 500, seed=1, groups=4)
    whole, scaled = place((sets, counts, load), 4), place((sets, counts / 1e7, load), 4)
    assert mean_copies(sets, counts, whole) == pytest.approx(mean_copies(sets, counts, scaled))


@pytest.mark.parametrize(("num_experts", "num_ranks"), [(8, 4), (9, 2), (20, 4), (22, 5)])
@pytest.mark.parametrize("max_load", [1.3, 1.1])
def test_the_bound_on_load_is_kept(num_experts, num_ranks, max_load):
    sets, counts, load = random_sets(num_experts, 3, 1000, seed=4, groups=4)
    load = np.random.default_rng(0).uniform(5, 6, num_experts)
    load *= 1 if num_experts % num_ranks == 0 else 0.1 + np.arange(num_experts)
    placement = place((sets, counts, load), num_ranks, max_load=max_load)
    assert load_max_over_mean(rank_loads(load, placement, num_ranks)) <= max_load + 1e-6
    free = place((sets, counts, load), num_ranks)
    assert mean_copies(sets, counts, placement) >= mean_copies(sets, counts, free) - 1e-9


@pytest.mark.parametrize(("num_experts", "num_ranks"), [(8, 4), (9, 3), (12, 2)])
def test_the_search_alone_keeps_the_tightest_bound_there_is(num_experts, num_ranks, monkeypatch):
    monkeypatch.setattr("c2r.planning.placement.place.is_small", lambda _: False)
    placements = enumerate_placements(num_experts, num_ranks).astype(np.int64)
    for seed in range(5):
        sets, counts, load = random_sets(num_experts, 3, 300, seed, groups=3)
        load = load * np.random.default_rng(seed).gamma(1.5, 1, num_experts)
        bounds = np.array(
            [load_max_over_mean(rank_loads(load, tried, num_ranks)) for tried in placements]
        )
        allowed = placements[bounds <= bounds.min() * 1.02]
        placement = place((sets, counts, load), num_ranks, max_load=bounds.min() * 1.02)
        best = min(mean_copies(sets, counts, tried) for tried in allowed)
        assert mean_copies(sets, counts, placement) == pytest.approx(best)
        place((sets, counts, load), num_ranks, max_load=bounds.min())


@pytest.mark.parametrize("num_experts", [8, 20])
def test_an_impossible_bound_says_what_is_possible(num_experts):
    load = np.ones(num_experts, dtype=np.int64)
    load[0] = 3 * num_experts
    sets, counts, _ = random_sets(num_experts, 2, 100, seed=0)
    on_first = load[0] + num_experts // 4 - 1
    best = on_first / (load.sum() / 4)
    with pytest.raises(PlanError, match=f"the best found has {best:.4f}"):
        place((sets, counts, load), 4, max_load=1.1)


def test_a_bound_below_the_mean_is_refused():
    with pytest.raises(PlanError, match=r"max_load = 0.9 .*choose 1.0 or more"):
        place(random_sets(8, 2, 50, 0), 2, max_load=0.9)


def test_more_ranks_than_experts_are_refused():
    with pytest.raises(PlanError, match="8 experts cannot be placed on 9 ranks"):
        place(random_sets(8, 2, 50, 0), 9)


def test_copies_to_nodes_come_before_copies_to_ranks():
    # Four pairs; pairs {0, 1} and {2, 3} are joined by few tokens that must stay on one node.
    sets = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [4, 6]])
    counts = np.array([9, 9, 9, 9, 1, 1])
    load = np.bincount(sets.ravel(), weights=np.repeat(counts, 2))
    topology = ClusterTopology(num_ranks=4, num_nodes=2)
    placement = place((sets, counts, load), 4, 2)
    assert placement.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert mean_node_copies(sets, counts, placement, topology) == 1.0


def test_a_plan_is_made_without_mtkahypar(monkeypatch):
    monkeypatch.setattr("c2r.planning.placement.hypergraph.start_mtkahypar", lambda: (None, None))
    sets, counts, load = random_sets(16, 4, 500, seed=1, groups=4)
    assert partition_hypergraph(sets, counts, 16, 4, 0) is None
    assert np.bincount(place((sets, counts, load), 4)).tolist() == [4] * 4


def test_without_mtkahypar_the_import_is_not_an_error():
    code = (
        "import sys; sys.modules['mtkahypar'] = None\n"
        "from c2r.planning.placement.hypergraph import start_mtkahypar\n"
        "assert start_mtkahypar() == (None, None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PROGRAM = """
import numpy as np
from c2r.plans import ClusterTopology
from c2r.planning import PlacementOptions, place_experts
from tests.planning.instances import random_sets
instance = random_sets(24, 4, 3000, seed=7, groups=5)
for _ in range(2):
    topology = ClusterTopology(num_ranks=5)
    placement = place_experts(*instance, topology, PlacementOptions(seed=11, effort=0.1))
    print(placement.tolist())
"""


def test_a_seed_gives_one_placement_in_every_process():
    printed = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert len({line for lines in printed for line in lines}) == 1


@pytest.mark.parametrize("num_ranks", [4, 5])
def test_mtkahypar_gives_even_sizes_and_repeats_itself(num_ranks):
    pytest.importorskip("mtkahypar")
    sets, counts, _ = random_sets(24, 4, 3000, seed=7, groups=5)
    first, _, again = (partition_hypergraph(sets, counts, 24, num_ranks, s) for s in (1, 2, 1))
    assert first.tolist() == again.tolist()
    assert np.ptp(np.bincount(first)) <= 1
