import pytest

from c2r.errors import CommunicationError
from c2r.parallel import agree, simulate


def test_ranks_that_agree():
    simulate(3, lambda comm: agree({"k": 4, "the plan": ["a", 1]}, comm))


def test_the_rank_that_differs_is_named_on_all():
    def disagree(comm):
        with pytest.raises(CommunicationError, match=r"the plan of rank 1 differs: \"b\" there"):
            agree({"the plan": "b" if comm.rank == 1 else "a"}, comm)

    simulate(3, disagree)
