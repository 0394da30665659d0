"""The rows of the time model are those that dispatchers send, rank by rank."""

import numpy as np
import pytest
import torch

from c2r.parallel import make_dispatcher, simulate
from c2r.plans import ClusterTopology
from c2r.prediction import DISPATCHERS, Cluster, ModelSizes, Workload
from c2r.prediction.rows import rows_by_rank
from c2r.prediction.shares import RankShares
from c2r.prediction.time import layer_time

NUM_EXPERTS, TOP_K, TOKENS, HIDDEN = 24, 4, 90, 5
TOPOLOGIES = (
    ClusterTopology(num_ranks=4, num_nodes=1),
    ClusterTopology(num_ranks=4, num_nodes=4),
    ClusterTopology(num_ranks=6, num_nodes=2),
    ClusterTopology(num_ranks=6, num_nodes=3),
)


def routing(seed=3):
    """Every rank has the same tokens, as is expected of any: `[tokens, k]`; no rank is alike."""
    rng = np.random.default_rng(seed)
    scores = rng.gumbel(size=(TOKENS, NUM_EXPERTS)) + np.linspace(0, 2, NUM_EXPERTS)
    return np.argsort(-scores, axis=1)[:, :TOP_K].copy()


def sent_rows(dispatcher, ids, placement, topology):
    """`[ranks, ranks]` rows that each rank really sends to each."""

    def run(comm):
        sends = make_dispatcher(
            dispatcher, comm=comm, placement=placement, num_nodes=topology.num_nodes
        )
        weights = torch.full(ids.shape, 1 / TOP_K)
        _, handle = sends.dispatch(torch.ones(TOKENS, HIDDEN), torch.from_numpy(ids), weights)
        return handle.num_rows_sent

    return np.array(simulate(topology.num_ranks, run))


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_rows_are_those_that_were_sent(dispatcher, topology):
    ids = routing()
    placement = np.random.default_rng(1).permutation(np.arange(NUM_EXPERTS) % topology.num_ranks)
    shares = RankShares.of(placement[ids], ids, np.ones(TOKENS), topology)
    inside, between = rows_by_rank(shares, topology, dispatcher)
    rows = sent_rows(dispatcher, ids, placement, topology)
    np.fill_diagonal(rows, 0)
    nodes = np.arange(topology.num_ranks) // topology.ranks_per_node
    same = nodes[:, None] == nodes
    for predicted, counted in ((inside, rows * same), (between, rows * ~same)):
        busier = np.maximum(counted.sum(0), counted.sum(1))
        assert TOKENS * predicted == pytest.approx(busier)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_the_time_is_that_of_the_bytes(dispatcher):
    """At 1 GB/s an exchange takes the bytes of the busiest rank, in nanoseconds."""
    ids, topology = routing(), TOPOLOGIES[0]
    placement = np.random.default_rng(2).permutation(np.arange(NUM_EXPERTS) % topology.num_ranks)
    shares = RankShares.of(placement[ids], ids, np.ones(TOKENS), topology)
    sizes = ModelSizes(
        hidden_size=HIDDEN, expert_size=1, shared_expert_size=0, num_layers=1, num_moe_layers=1,
        dense_parameters=0,
    )  # fmt: skip
    cluster = Cluster(
        name="one", source="made up", num_ranks=4, inner_gigabytes=1.0, inner_microseconds=0.0,
        outer_gigabytes=1.0, outer_microseconds=0.0, teraflops=1.0, memory_gigabytes=1.0,
        memory_gigabytes_per_second=1.0, launch_microseconds=0.0,
    )  # fmt: skip
    rows = sent_rows(dispatcher, ids, placement, topology)
    np.fill_diagonal(rows, 0)
    workload = Workload(sizes=sizes, tokens_per_rank=TOKENS)
    found = layer_time(shares, cluster, workload, dispatcher)
    num_bytes = 2 * HIDDEN * max(rows.sum(0).max(), rows.sum(1).max())
    assert found.dispatch == pytest.approx(num_bytes / 1e6)
