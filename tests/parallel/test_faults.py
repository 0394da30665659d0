"""A rank that dies or hangs in the middle of a step stops the others, with its name."""

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


def work(rank: int, how: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=NUM_RANKS
    )
    comm = ProcessGroupComm(timeout=TIMEOUT_SECONDS)
    layer = make_layer([0, 1, 2], [4] * NUM_RANKS)
    output = layer.run(comm, "zero_redundancy", layer="layers.1.experts")
    if rank == LOST_RANK:
        if how == "hangs":
            time.sleep(3 * TIMEOUT_SECONDS)
        os._exit(0)
    start = time.monotonic()
    try:
        if how == "dies":
            output.sum().backward()
        else:
            layer.run(comm, "zero_redundancy", layer="layers.1.experts")
    except CommunicationError as error:
        seconds = time.monotonic() - start
        (folder / f"{rank}").write_text(f"{seconds}\n{error}")
    os._exit(0)  # the group cannot be closed any more


@pytest.mark.parametrize(
    ("how", "collective"),
    [
        ("dies", "backward of the exchange of results of layers.1.experts"),
        ("hangs", "the exchange of counts of layers.1.experts"),
    ],
)
def test_the_others_stop_and_name_it(how, collective, tmp_path):
    mp.start_processes(work, (how, tmp_path), nprocs=NUM_RANKS)
    for rank in (0, 1):
        seconds, error = (tmp_path / f"{rank}").read_text().split("\n")
        assert float(seconds) <= 2.5 * TIMEOUT_SECONDS
        assert f"rank {LOST_RANK} did not answer rank {rank} in {collective}" in error
        assert f"timeout {TIMEOUT_SECONDS:g} s" in error
