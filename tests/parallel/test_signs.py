"""Signs of life: who is slow, who is lost, and what a rank ended with."""

import threading
import time

import pytest
import torch.distributed as dist

from c2r.errors import CommunicationError
from c2r.parallel import Signs

TIMEOUT_SECONDS = 1.5


@pytest.fixture
def ranks():
    store = dist.HashStore()
    made = [Signs(store, rank, 3, TIMEOUT_SECONDS, is_kept_by_first=False) for rank in range(3)]
    yield made
    for signs in made:
        signs._close()


def meet(signs, seconds=0.0):
    """Meets in a thread after so many seconds; gives where its error will be."""
    errors = []

    def run():
        time.sleep(seconds)
        try:
            signs.meet("the test")
        except CommunicationError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_slow_rank_is_waited_for_beyond_the_timeout(ranks):
    started = time.monotonic()
    threads = [meet(signs, 2 * TIMEOUT_SECONDS * (signs.rank == 2)) for signs in ranks]
    for thread, errors in threads:
        thread.join()
        assert errors == []
    assert time.monotonic() - started >= 2 * TIMEOUT_SECONDS


def test_a_rank_without_signs_is_lost_and_told_once(ranks):
    told = []
    ranks[0].on_lost = told.append
    ranks[2]._close()
    threads = [meet(signs) for signs in ranks[:2]]
    for thread, errors in threads:
        thread.join(10)
        assert len(errors) == 1 and errors[0].startswith("rank 2 did not come to the test (no sign")
    assert [line.partition(" (")[0] for line in told] in ([], ["rank 2 is lost"])


def test_what_a_rank_ended_with_is_told_by_the_others(ranks):
    threads = [meet(signs) for signs in ranks[:2]]
    assert ranks[2].leave("there is no plan") == "rank 2: there is no plan"
    for thread, errors in threads:
        thread.join(10)
        assert errors == ["rank 2: there is no plan"]


def test_in_an_exchange_that_failed_the_lost_rank_is_named_and_not_the_slow_one(ranks):
    ranks[2]._close()
    assert ranks[0].missing([0, 1, 2], "an exchange", 3.0) == [2]


def test_a_rank_that_hangs_alive_is_named_if_nobody_is_lost(ranks):
    thread = threading.Thread(target=ranks[1].missing, args=([0, 1, 2], "an exchange", 3.0))
    thread.start()
    assert ranks[0].missing([0, 1, 2], "an exchange", 3.0) == [2]
    thread.join()


def test_an_interrupt_of_all_is_no_loss(ranks):
    found = []
    threads = [
        threading.Thread(target=lambda signs=signs: found.append(signs.interrupted()))
        for signs in ranks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 3
