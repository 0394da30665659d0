"""What each dispatcher sends, by hand, by brute force and as real processes sent it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from c2r.parallel.chunks import TRIED_CHUNKS
from c2r.plans import ClusterTopology
from c2r.prediction import find_cluster
from c2r.timing import (
    Case,
    Network,
    RecordedRouting,
    Recording,
    SwiGLUExperts,
    TimedLayer,
    dispatcher_cases,
    layer_plan,
    predict_rows,
    shares_of,
    time_dispatchers,
)
from c2r.timing.meter import Meter
from tests.parallel.processes import run_checks

ROOT = Path(__file__).parents[2]


def rows_of(dispatcher, ids, placement, topology):
    ranks = np.array(placement)[np.array(ids)]
    return predict_rows(Case(name="", dispatcher=dispatcher), ranks, topology)


def test_rows_by_hand():
    """One token on each of four ranks, two nodes; expert e lives on rank e."""
    topology = ClusterTopology(num_ranks=4, num_nodes=2)
    ids = [[[0, 1]], [[2, 3]], [[2, 2]], [[0, 1]]]
    found = {
        name: rows_of(name, ids, [0, 1, 2, 3], topology)
        for name in ("k_fold", "zero_redundancy", "all_gather", "hierarchical")
    }
    # Token 0 visits ranks 0 and 1, token 1 ranks 2 and 3, token 2 stays, token 3 ranks 0 and 1.
    assert found["k_fold"] == 1 + 2 + 0 + 2
    assert found["zero_redundancy"] == 1 + 2 + 0 + 2
    assert found["all_gather"] == 4 * 3
    # Token 1 goes to rank 3 and from there to 2, token 3 to rank 1 and from there to 0.
    assert found["hierarchical"] == 1 + 2 + 0 + 2
    one_rank = [0, 0, 1, 1]
    assert rows_of("k_fold", ids, one_rank, topology) == 0 + 0 + 2 + 2
    assert rows_of("zero_redundancy", ids, one_rank, topology) == 0 + 0 + 1 + 1


def test_rows_by_brute_force():
    rng = np.random.default_rng(1)
    topology = ClusterTopology(num_ranks=6, num_nodes=3)
    ids = rng.permuted(np.tile(np.arange(24), (6 * 20, 1)), axis=1)[:, :5].reshape(6, 20, 5)
    placement = rng.permutation(np.arange(24) % 6)
    flat = nodes = 0
    for rank in range(6):
        for token in ids[rank]:
            ranks = set(placement[token])
            flat += len(ranks - {rank})
            for node in {other // 2 for other in ranks}:
                door = node * 2 + rank % 2
                nodes += (door != rank) + len({r for r in ranks if r // 2 == node} - {door})
    assert rows_of("zero_redundancy", ids, placement, topology) == flat
    assert rows_of("hierarchical", ids, placement, topology) == nodes


def test_cases_by_hand():
    """Placed cases and the baseline overlap; nodes bring hierarchical dispatch."""
    flat = dispatcher_cases(["top_k", "c2r 8"], ClusterTopology(num_ranks=4), chunks=[2])
    assert [case.name for case in flat] == [
        "k_fold",
        "all_gather",
        "zero_redundancy",
        "zero_redundancy, placed",
        "zero_redundancy, placed, c2r 8",
        "k_fold, 2 chunks",
        "zero_redundancy, placed, 2 chunks",
        "zero_redundancy, placed, c2r 8, 2 chunks",
    ]
    assert [case.num_chunks for case in flat] == [1] * 5 + [2] * 3
    assert (flat[4].routing, flat[4].is_placed, flat[2].is_placed) == ("c2r 8", True, False)
    on_nodes = dispatcher_cases(["top_k", "c2r 8"], ClusterTopology(num_ranks=4, num_nodes=2))
    assert [case.name for case in on_nodes[5:]] == [
        "hierarchical",
        "hierarchical, placed",
        "hierarchical, placed, c2r 8",
    ]
    assert {case.dispatcher for case in on_nodes[5:]} == {"hierarchical"}


def test_cases_with_replicas_by_hand():
    """They overlap as other placed cases do, and are dispatched by nodes too."""
    found = dispatcher_cases(["top_k", "c2r 8"], ClusterTopology(num_ranks=4, num_nodes=2), [2], 3)
    assert [(case.name, case.num_chunks) for case in found if case.has_replicas] == [
        ("zero_redundancy, placed, 3 replicas", 1),
        ("hierarchical, placed, 3 replicas", 1),
        ("zero_redundancy, placed, 3 replicas, 2 chunks", 2),
    ]
    assert {case.routing for case in found if case.has_replicas} == {"top_k"}
    assert all(case.is_placed for case in found if case.has_replicas)


def recording_with_replicas(num_nodes):
    """Two layers of 8 experts on 4 ranks, each with 2 replicas; 12 tokens a rank."""
    rng = np.random.default_rng(num_nodes)
    ids = rng.permuted(np.tile(np.arange(8), (2, 48, 1)), axis=2)[:, :, :3]
    weights = rng.random(ids.shape, dtype=np.float32)
    placement = np.stack([rng.permutation(np.arange(8) % 4) for _ in range(2)])
    replicas = [
        [rng.permutation(np.flatnonzero(ranks != rank))[:2] for rank in range(4)]
        for ranks in placement
    ]
    return Recording(
        num_experts=8,
        topology=ClusterTopology(num_ranks=4, num_nodes=num_nodes),
        placement=placement,
        replicas=np.array(replicas),
        max_load=1.0,
        routings={"top_k": RecordedRouting(loss=None, expert_ids=ids, weights=weights)},
    )


def check_replicas(comm, num_nodes):
    """Rows go where they are predicted to, and the outputs are those of k-fold dispatch."""
    recording = recording_with_replicas(num_nodes)
    shape = TimedLayer(num_tokens=12, hidden_size=16, intermediate_size=8, dtype=torch.float32)
    network = Network(cluster=find_cluster("hosts-4-10g").of_size(4, num_nodes))
    report = time_dispatchers(recording, shape, 1, [2, "auto"], network=network)
    found = {times.case.name: times for times in report.cases}
    names = ["zero_redundancy, placed", *(["hierarchical, placed"] if num_nodes == 2 else [])]
    for name in names:
        alone, held = found[name], found[f"{name}, 2 replicas"]
        assert held.rows_sent == held.rows_predicted < alone.rows_predicted
        assert held.predicted["total"] > 0
    chunked = found["zero_redundancy, placed, 2 replicas, 2 chunks"]
    assert chunked.rows_sent == found["zero_redundancy, placed, 2 replicas"].rows_sent
    assert chunked.num_chunks == (2, 2)
    tried = found["zero_redundancy, placed, 2 replicas, auto chunks"]
    assert set(tried.num_chunks) <= set(TRIED_CHUNKS) and tried.rows_sent == chunked.rows_sent
    assert tried.predicted["total"] > 0
    assert max(times.error for times in report.cases) < 1e-5


REPLICA_CHECKS = {
    "one_node": partial(check_replicas, num_nodes=1),
    "two_nodes": partial(check_replicas, num_nodes=2),
}


@pytest.mark.distributed
def test_rows_to_replicas_are_predicted():
    assert run_checks(REPLICA_CHECKS) == {}


def test_shares_with_replicas_by_hand():
    """Both ranks hold the experts 0 and 2, so that their token visits one rank instead of two."""
    recording = replace(
        recording_with_replicas(1),
        num_experts=3,
        topology=ClusterTopology(num_ranks=2),
        placement=np.array([[0, 0, 1]]),
        replicas=np.array([[[2], [0]]]),
    )
    ids = np.array([[0, 1], [0, 2]])
    routing = RecordedRouting(loss=None, expert_ids=ids[None], weights=np.ones((1, 2, 2)))
    recording = replace(recording, routings={"top_k": routing})
    placed = Case(name="", dispatcher="zero_redundancy", is_placed=True)
    topology = recording.topology
    alone, held = (
        layer_plan(replace(placed, has_replicas=has), recording, 0) for has in (False, True)
    )
    visits = [
        shares_of(ids, plan.ranks_of(ids, topology), topology).visits for plan in (alone, held)
    ]
    assert [each.tolist() for each in visits] == [[1, 0.5], [1, 0]]
    assert (alone.experts_of(1).tolist(), held.experts_of(1).tolist()) == ([2], [2, 0])


def test_an_expert_is_the_same_wherever_it_lives():
    shape = (16, 8, torch.float32)
    rows = torch.randn(5, 16)
    both = SwiGLUExperts([3, 7], *shape)(rows, torch.tensor([2, 3]))
    alone = SwiGLUExperts([7], *shape)(rows[2:], torch.tensor([3]))
    assert torch.allclose(both[2:], alone, atol=1e-6)


def test_the_meter_splits_forward_and_backward():
    meter = Meter()
    meter.begin()
    rows = torch.ones(2, 3, requires_grad=True)
    output = meter.around(lambda rows, counts: 2 * rows)(rows, torch.tensor([2]))
    assert meter.phase == "combine"
    output.sum().backward()
    assert meter.phase == "dispatch" and rows.grad.eq(2).all()
    meter.end()
    assert set(meter.watch.seconds) == {"reorder", "compute"}


@pytest.mark.distributed
def test_real_processes_send_what_is_predicted(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / "expert_parallel.py", "--out", out]
    options = "--ranks 2 --tokens 96 --hidden-size 256 --intermediate-size 32 --rounds 2 --chunks 2"
    options += " --calibration-tokens 4096 --layers 3"
    finished = subprocess.run(
        [*command, *options.split(), "--policy", "budgeted=0.3", "--timeout", "100"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "k_fold" in finished.stdout
    result = json.loads(finished.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == result
    assert set(result["losses"]) == {"top_k", "budgeted 0.3"}
    assert result["topology"] == {"num_ranks": 2, "num_nodes": 2}
    assert result["settings"] == {
        "routing": "tiny",
        "calibration_tokens": 4096,
        "tokens_per_rank": 96,
        "hidden_size": 256,
        "intermediate_size": 32,
        "dtype": "bfloat16",
        "rounds": 2,
        "num_layers": 3,
        "compute": "real",
        "device": None,
        "cluster": None,
        "max_load": 1.1,
        "replicas": 0,
    }
    assert result["cores"] == "cores shared by all ranks"
    cases = {case["case"]["name"]: case for case in result["cases"]}
    assert list(cases)[:4] == [
        "k_fold",
        "all_gather",
        "zero_redundancy",
        "zero_redundancy, placed",
    ]
    for case in cases.values():
        assert case["rows_sent"] == case["rows_predicted"]
        assert case["error"] < 0.02
        assert case["seconds"]["lower"] > 0
        assert case["predicted"] is None
        assert case["rows_received"] >= case["rows_sent"] / 2  # by the busier of two
        if sys.platform == "linux":
            assert 1 < case["bytes_sent"] / case["bytes_predicted"] < 1.15  # short rows
    assert cases["k_fold"]["ratio"] == {"median": 1, "lower": 1, "upper": 1}
    rows = [case["rows_sent"] for case in cases.values()]
    assert rows[0] > rows[2] >= rows[3] > rows[4]


@pytest.mark.distributed
def test_a_trace_on_emulated_devices_is_predicted(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(8), (600, 3, 1)), axis=2)[:, :, :2]
    np.savez(tmp_path / "routing.npz", experts=ids.astype(np.uint8), lengths=np.full(20, 30))
    cluster = replace(find_cluster("hosts-4-10g"), launch_microseconds=100.0)
    cluster.save(tmp_path / "cluster.yaml")
    out = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / "expert_parallel.py", "--out", out]
    options = "--ranks 2 --tokens 64 --hidden-size 64 --intermediate-size 32 --rounds 1 --layers 2"
    options += " --device emulated --rows-per-second 5000 --replicas 1 --chunks 2 --chunks auto"
    files = ["--trace", tmp_path / "routing.npz", "--cluster", tmp_path / "cluster.yaml"]
    finished = subprocess.run(
        [*command, *options.split(), *files, "--timeout", "100"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "compute emulated, 5,000 rows a second and 100 us a start" in finished.stdout
    result = json.loads(out.read_text())
    settings = result["settings"]
    assert (settings["compute"], settings["routing"]) == ("emulated", "routing.npz")
    assert settings["device"] == {"rows_per_second": 5000.0, "launch_seconds": 1e-4}
    assert result["losses"] == {"top_k": None}
    assert settings["replicas"] == 1
    names = [case["case"]["name"] for case in result["cases"] if case["case"]["has_replicas"]]
    name = "zero_redundancy, placed, 1 replicas"
    assert names == [name, f"{name}, 2 chunks", f"{name}, auto chunks"]
    assert re.search(r"\(\d, \d\)", finished.stdout)  # the table wraps names
    for case in result["cases"]:
        assert case["rows_sent"] == case["rows_predicted"] and case["error"] < 0.02
        # Two tokens' worth of rows a token, by the busier of two ranks, forward and twice back.
        compute = 3 * 64 * 2 * case["rank_load_max_over_mean"] / 5000
        assert case["predicted"]["compute"] == pytest.approx(compute)
        assert case["compute_alone"]["median"] == pytest.approx(compute, rel=0.5)
