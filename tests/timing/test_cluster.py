"""A cluster measured by real processes: what the report says, never how fast it is."""

import json
import os
import subprocess
import sys

import pytest
import torch

from c2r.plans import ClusterTopology
from c2r.prediction.cluster import read_cluster
from c2r.timing import ClusterSettings, measure_cluster
from tests.parallel.processes import run_checks

SMALL = ClusterSettings(
    hidden_size=32,
    intermediate_size=16,
    num_experts=2,
    dtype=torch.float32,
    sizes=(4096, 65536),
    rows=(8, 64),
    num_rounds=2,
    is_by_pair=True,
)


def two_nodes(comm):
    rounds = []
    topology = ClusterTopology(num_ranks=4, num_nodes=2)
    report = measure_cluster(comm, topology, SMALL, rounds.append)
    assert rounds == [0, 1]
    kinds = [link.pattern.kind for link in report.links]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "all": 2,
        "sends": 8,
        "receives": 8,
        "pair": 12,
    }
    assert [product.num_rows for product in report.products] == [8, 64]
    assert len(report.copy_gigabytes) == 4
    found = report.cluster
    assert found.topology == topology
    assert found.inner_gigabytes == pytest.approx(worst(report, "inside"), rel=1e-3)
    assert found.outer_gigabytes == pytest.approx(worst(report, "between"), rel=1e-3)
    assert all(
        (rate > 0) == (one != other)
        for one, row in enumerate(found.link_gigabytes)
        for other, rate in enumerate(row)
    )
    json.dumps(report.to_json())


def worst(report, level):
    return min(
        link.gigabytes
        for link in report.links
        if link.pattern.level == level and link.pattern.kind != "pair"
    )


def hosts_of_one_rank(comm):
    report = measure_cluster(comm, ClusterTopology(num_ranks=4, num_nodes=4), SMALL)
    assert {link.pattern.level for link in report.links} == {"between"}
    assert "no links inside nodes, taken as the others" in report.cluster.source
    assert report.cluster.inner_gigabytes == report.cluster.outer_gigabytes


@pytest.mark.distributed
def test_ranks_agree_on_what_they_measured():
    assert run_checks({check.__name__: check for check in (two_nodes, hosts_of_one_rank)}) == {}


OPTIONS = "--ranks 2 --rounds 1 --hidden-size 32 --intermediate-size 16 --dtype float32"
SIZES = "--size 4096 --size 65536 --rows 8 --rows 64"


def run(*options, **environment):
    return subprocess.run(
        [sys.executable, "-m", "c2r", "bench", "cluster", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.distributed
def test_the_command_starts_its_processes_and_writes_what_others_read(tmp_path):
    out = tmp_path / "mine.yaml"
    finished = run(*OPTIONS.split(), *SIZES.split(), "--matrix", "--json", "--out", str(out))
    assert finished.returncode == 0, finished.stderr
    document, cluster = json.loads(finished.stdout), read_cluster(out)
    assert (cluster.num_ranks, cluster.num_nodes) == (2, 1)
    assert document["cluster"]["inner_gigabytes"] == cluster.inner_gigabytes > 0
    assert len(cluster.link_gigabytes) == 2
    assert "c2r bench cluster, 20" in cluster.source and torch.__version__ in cluster.source
    assert finished.stderr.splitlines() == ["measuring 2 ranks on 1 nodes", "round 1 of 1"]


@pytest.mark.distributed
def test_a_rank_that_fails_is_told_in_one_line(tmp_path):
    out = tmp_path / "missing" / "mine.yaml"
    finished = run(*OPTIONS.split(), *SIZES.split(), "--out", str(out))
    assert finished.returncode == 2
    (told,) = [line for line in finished.stderr.splitlines() if line.startswith("c2r: ")]
    assert "mine.yaml" in told and finished.stderr.splitlines()[-1] == told
    assert "Traceback" not in finished.stderr
