"""What ranks tell each other besides rows, and a process that never comes."""

import multiprocessing
import os
import socket
import time

import pytest
import torch

from c2r.errors import CommunicationError
from c2r.parallel import gather_bytes, join_world, simulate

TIMEOUT_SECONDS = 2.0


def gather_and_add_up(comm):
    parts = [b"", b"one", bytes(range(256)) * 300, b"\0"]
    assert gather_bytes(parts[comm.rank], comm) == parts[: comm.size]
    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        tensor = torch.tensor([1, comm.rank], dtype=dtype)
        comm.all_reduce(tensor)
        assert tensor.tolist() == [comm.size, sum(range(comm.size))]
    comm.barrier()


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_gather_and_add_up(num_ranks):
    simulate(num_ranks, gather_and_add_up)


def test_no_rank_passes_the_barrier_before_the_last_one_is_there():
    arrived = []

    def meet(comm):
        time.sleep(0.05 * comm.rank)
        arrived.append(comm.rank)
        comm.barrier()
        return len(arrived)

    assert simulate(3, meet) == [3, 3, 3]


def come(rank, port, told):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # as under torchrun, which keeps the store
    start = time.monotonic()
    try:
        join_world(timeout=TIMEOUT_SECONDS)
    except CommunicationError as error:
        told.put((rank, time.monotonic() - start, str(error)))


@pytest.mark.distributed
def test_a_process_that_never_comes_is_told_in_time():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [context.Process(target=come, args=(rank, store.port, told)) for rank in (0, 2)]
    for process in processes:
        process.start()
    reports = {
        rank: (seconds, error) for rank, seconds, error in (told.get(timeout=60) for _ in processes)
    }
    for process in processes:
        process.join()
    assert set(reports) == {0, 2}
    for seconds, error in reports.values():
        assert "rank 1 did not come to the start (no sign of life; timeout 2 s)" in error
        assert seconds <= TIMEOUT_SECONDS + 10


def test_a_store_that_is_not_there_is_told_in_time(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    facts = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in facts.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(CommunicationError, match="a process did not come"):
        join_world(timeout=1)
