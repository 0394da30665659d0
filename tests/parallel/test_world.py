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


AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # as under torchrun, which keeps the store


def place(port, size=3):
    return {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def come(rank, environment, told):
    os.environ.update(environment, RANK=str(rank))
    start = time.monotonic()
    try:
        join_world(timeout=TIMEOUT_SECONDS)
    except CommunicationError as error:
        told.put((rank, time.monotonic() - start, str(error)))


def meet_and_die(rank, environment, told):
    """Dies without a word, as a rank that was killed."""
    come(rank, environment, told)
    told.put((rank, gather_bytes(b"%d" % rank)))
    told.close()
    told.join_thread()
    os._exit(1)


@pytest.mark.distributed
def test_ranks_that_torchrun_started_again_meet_anew():
    """At the store where those before them have left their signs and addresses."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    for launch in range(2):
        environment = place(store.port, size=2) | AGENT
        environment["TORCHELASTIC_RESTART_COUNT"] = str(launch)
        told = context.Queue()
        ranks = [
            context.Process(target=meet_and_die, args=(rank, environment, told))
            for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        found = dict(told.get(timeout=60) for _ in ranks)
        assert found == {0: [b"0", b"1"], 1: [b"0", b"1"]}, launch
        for rank in ranks:
            rank.join()


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.mark.distributed
def test_a_process_that_never_comes_is_told_in_time():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = place(store.port) | AGENT
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [context.Process(target=come, args=(rank, environment, told)) for rank in (0, 2)]
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


def test_a_first_rank_that_never_comes_is_told_in_time(monkeypatch):
    for name, value in {**place(free_port()), "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CommunicationError, match=r"^rank 0 did not come to the start"):
        join_world(timeout=1)


def test_a_first_rank_that_is_stopped_is_told_in_time(monkeypatch):
    with socket.socket() as stopped:  # the kernel takes calls for it, and nobody answers
        stopped.bind(("127.0.0.1", 0))
        stopped.listen()
        for name, value in {**place(stopped.getsockname()[1]), "RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CommunicationError, match=r"^rank 0 did not come to the start"):
            join_world(timeout=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not in the environment"),
        ({"MASTER_PORT": "x"}, "tells no place to meet"),
        ({"MASTER_PORT": "99999", "RANK": "0"}, "rank 0 cannot keep 127.0.0.1:99999"),
    ],
)
def test_a_place_that_is_none_is_told(monkeypatch, change, words):
    for name, value in {**place(free_port()), "RANK": "1", **change}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(CommunicationError, match=words):
        join_world(timeout=1)
