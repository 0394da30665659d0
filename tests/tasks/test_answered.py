"""Items that ranks share out, and answers that are kept when some of them are lost."""

from dataclasses import fields

import numpy as np
import pytest

from c2r.measuring import RoutingTally
from c2r.parallel import simulate
from c2r.tasks.answered import Answered, forget_answers
from tests.losing_ranks import after_losses

NUM_ITEMS = 23
ASKED = {"model": "one", "seed": 0}


def tally(number):
    sums = [entry.name for entry in fields(RoutingTally)]
    return RoutingTally(**{name: np.array([float(number)]) for name in sums})


def answer(out, comm, stops, asked=ASKED):
    """Answers item n with n; each rank is lost after so many more, if there are stops."""
    answered = Answered(out, asked, NUM_ITEMS, comm)
    todo = [number for numbers in answered.left(2) for number in numbers]
    for number in todo if stops is None else todo[: stops[comm.rank]]:
        answered.add([number], [{"id": number}], tally(number))
    if stops is not None:
        answered.save()
        return None
    return answered.gather()


@pytest.mark.parametrize("seed", range(12))
def test_every_item_is_answered_once_however_often_ranks_are_lost(tmp_path, seed):
    out = tmp_path / "piqa.json"
    found = after_losses(seed, lambda comm, stops: answer(out, comm, stops))
    for rows, routing in found:
        assert [row["id"] for row in rows] == list(range(NUM_ITEMS))
        assert routing.num_tokens == [sum(range(NUM_ITEMS))]
    forget_answers(out)
    assert list(tmp_path.iterdir()) == []


def test_answers_of_another_model_or_none_of_ours_are_not_taken(tmp_path):
    out = tmp_path / "piqa.json"
    simulate(2, lambda comm: answer(out, comm, [3, 4], {**ASKED, "model": "another"}))
    simulate(2, lambda comm: answer(out, comm, [5, 5]))
    kept = sorted(tmp_path.glob("*.rank1of2"))
    assert len(kept) == 2
    for path in kept:
        path.write_text("damaged")
    answered = Answered(out, ASKED, NUM_ITEMS, None)
    left = [number for numbers in answered.left(100) for number in numbers]
    assert left == [n for n in range(NUM_ITEMS) if n not in range(0, 10, 2)]
