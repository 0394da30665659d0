"""Sweeps whose text ranks share out, also after some were lost."""

from types import SimpleNamespace

import pytest

from c2r.measuring import Tally
from c2r.parallel import Comm, simulate
from c2r.sweeps import RunningSweep
from c2r.sweeps.crew import Crew, Stage
from tests.losing_ranks import after_losses

NUM_BATCHES = 23
STAGE = Stage({"seed": 0}, "all", ("a plan",))


class LostError(Exception):
    pass


def measure(out, comm: Comm | None, stops: list[int] | None, stage=STAGE):
    """The batches that were measured; each rank is lost after so many more of its own."""
    running = RunningSweep(points=(), plans=(SimpleNamespace(),), tallies=(Tally(),))
    crew = Crew(comm, out)

    def run(running, share, keep):
        (tally,) = running.tallies
        todo = list(share.of(range(NUM_BATCHES)))[running.num_batches :]
        for number in todo if stops is None else todo[: stops[crew.rank]]:
            tally.num_batches += 1
            tally.add_window_of(number)
        if stops is not None:
            keep(running.to_json())
            raise LostError

    try:
        crew.measure(stage, running, run)
    except LostError:
        return None
    crew.clear()
    return running.tallies[0].losses


@pytest.fixture(autouse=True)
def windows_are_numbers(monkeypatch):
    def add(tally, number):
        tally.losses.append(float(number))
        tally.num_predicted.append(1)

    monkeypatch.setattr(Tally, "add_window_of", add, raising=False)
    # Routing is not counted here, only which batches were.
    whole = Tally.add

    def add_all(tally, other):
        whole(tally, other)
        tally.num_batches += other.num_batches if other.routing is None else 0

    monkeypatch.setattr(Tally, "add", add_all)


@pytest.mark.parametrize("seed", range(12))
def test_every_batch_is_measured_once_however_often_ranks_are_lost(tmp_path, seed):
    out = tmp_path / "sweep.json"
    results = after_losses(seed, lambda comm, stops: measure(out, comm, stops))
    for losses in results:
        assert sorted(losses) == list(range(NUM_BATCHES))
    assert list(tmp_path.iterdir()) == []


def test_parts_of_another_sweep_are_left_alone(tmp_path):
    out = tmp_path / "sweep.json"
    simulate(2, lambda comm: measure(out, comm, [3, 3], STAGE._replace(plans=("another",))))
    before = sorted(tmp_path.iterdir())
    assert len(before) == 2 and Crew(None, out).parts(STAGE) == {}
    before[0].write_text("damaged")
    assert Crew(None, out).parts(STAGE._replace(plans=("another",))).keys() == {before[1]}
