"""A rank that hangs or dies in the middle of a step stops the others, with its name."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from c2r.errors import CommunicationError
from c2r.parallel import ProcessGroupComm
from tests.parallel.layers import make_layer

TIMEOUT_SECONDS = 4.0
NUM_RANKS = 3
LOST_RANK = 2
pytestmark = pytest.mark.distributed


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=NUM_RANKS
    )
    layer = make_layer([0, 1, 2], [4] * NUM_RANKS)
    for name, step in (("hangs", hang), ("dies", die)):
        comm = ProcessGroupComm(dist.new_group(list(range(NUM_RANKS))), timeout=TIMEOUT_SECONDS)
        output = layer.run(comm, "zero_redundancy", layer="layers.1.experts")
        start = time.monotonic()
        try:
            step(comm, layer, output)
        except CommunicationError as error:
            seconds = time.monotonic() - start
            (folder / f"{name}.{rank}").write_text(f"{seconds}\n{error}")
    os._exit(0)  # the groups cannot be closed any more


def hang(comm, layer, output):
    if comm.rank == LOST_RANK:
        time.sleep(TIMEOUT_SECONDS + 1)
    else:
        layer.run(comm, "zero_redundancy", layer="layers.1.experts")


def die(comm, layer, output):
    if comm.rank == LOST_RANK:
        os._exit(0)
    output.sum().backward()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    mp.start_processes(work, (folder,), nprocs=NUM_RANKS)
    return {path.name: path.read_text().split("\n") for path in folder.glob("*.*")}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "collective"),
    [
        ("hangs", "the exchange of counts of layers.1.experts"),
        ("dies", "backward of the exchange of results of layers.1.experts"),
    ],
)
def test_the_others_stop_and_name_it(reports, how, collective, rank):
    seconds, error = reports[f"{how}.{rank}"]
    assert float(seconds) <= TIMEOUT_SECONDS + 0.5
    assert f"rank {LOST_RANK} did not answer rank {rank} in {collective}" in error
    assert f"timeout {TIMEOUT_SECONDS:g} s" in error
